"""Augmentations: sizes, random streams, masks, learned words, compositions, and the contract."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import build_pipeline
from diffusers import AutoPipelineForImage2Image, DDIMScheduler
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from semantic_aug import UserError
from semantic_aug.augmentations import AUGMENTATIONS, augmentation_class
from semantic_aug.augmentations.compose import (
    ComposeParallel,
    ComposeSequential,
    PerClass,
    check_probs,
)
from semantic_aug.augmentations.real_guidance import RealGuidance
from semantic_aug.augmentations.sdedit import (
    check_prompt,
    check_strength,
    denoising_steps,
    masks_of,
)
from semantic_aug.augmentations.textual_inversion import TextualInversion
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, set_scheduler
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.words.embeddings import LearnedWords, merge_embeddings, write_embeddings

FAST = {"num_inference_steps": 4, "strength": 0.5}


@pytest.fixture(scope="module")
def pipeline(small_model):
    return load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float32)


def photo(size=(48, 40), seed=0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3))
    return Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def disc(size=(48, 40)) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    return (((x - 20) ** 2 + (y - 18) ** 2 < 100) * 255).astype(np.uint8)


def embeddings(path, seed=0, dim=32, num_vectors=2, name="cat", token="<cat>"):
    rows = 3 * torch.randn(num_vectors, dim, generator=stream(seed))
    write_embeddings(path, {token: rows}, {"class": name})
    return path


# --- edits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [False, True])
def test_images_keep_their_sizes(pipeline, mask):
    sizes = [(31, 47), (101, 33), (7, 5), (64, 64), (1, 1)]
    metadata = [{"name": "cat", "mask": np.full(size[::-1], 255)} for size in sizes]
    images, edits = RealGuidance(pipeline, mask=mask, **FAST).augment(
        [photo(size) for size in sizes], [0] * 5, metadata, [stream(i) for i in range(5)]
    )
    assert [image.size for image in images] == sizes
    assert {image.mode for image in images} == {"RGB"}
    assert [len(each) for each in edits] == [1] * 5


@pytest.mark.parametrize("family", ["small_model", "xl_model", "velocity_model"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_edits_are_those_of_the_stock_pipeline(family, guidance_scale, request):
    """Photos and prompts are encoded once and kept; pixels stay what they are without that."""
    folder = request.getfixturevalue(family)
    ours = load_pipeline(inspect_model(folder), torch.device("cpu"), torch.float32)
    aug = RealGuidance(ours, **FAST, guidance_scale=guidance_scale)
    stock = AutoPipelineForImage2Image.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    encoded = []
    forward = ours.vae.encode
    ours.vae.encode = lambda pixels: encoded.append(len(pixels)) or forward(pixels)
    images = [photo((32, 32), seed=i % 2) for i in range(4)]
    streams = [stream(i) for i in range(4)]
    found, _ = aug.augment(images, [0] * 4, [{"name": "cat"}] * 4, streams)
    expected = stock(
        ["a photo of a cat"] * 4, image=images, guidance_scale=guidance_scale,
        generator=[stream(i) for i in range(4)], **FAST,
    ).images  # fmt: skip
    for x, y in zip(found, expected):
        assert np.abs(pixels(x) - pixels(y)).max() <= 1
    assert encoded == [1, 1]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dtype, bound", [(torch.float16, 2), (torch.bfloat16, 10)])
def test_image_of_a_stream_is_the_same_in_every_precision(small_model, dtype, bound, mask):
    """But for rounding: noise is drawn in float32, before the steps, in each, and for a photo."""
    found = []
    for each in (torch.float32, dtype):
        model = load_pipeline(inspect_model(small_model), torch.device("cpu"), each)
        set_scheduler(model, "lcm")  # which draws noise at every step as well
        aug = RealGuidance(model, **FAST, mask=mask)
        (image,), _ = aug.augment([photo()], [0], [{"name": "cat", "mask": disc()}], [stream(0)])
        found.append(pixels(image)[disc() > 0])
    assert np.abs(found[0] - found[1]).mean() < bound


def test_one_image_gives_image_and_label(pipeline):
    aug = RealGuidance(pipeline, **FAST)
    image, label = aug(photo(), 7, {"name": "cat"}, stream(3))
    assert label == 7
    assert image.size == (48, 40)
    (same,), _ = aug.augment([photo()], [7], [{"name": "cat"}], [stream(3)])
    assert np.array_equal(pixels(image), pixels(same))
    assert np.abs(pixels(image) - pixels(photo())).mean() > 5


def test_without_a_generator_torch_s_random_state_decides(pipeline):
    aug = RealGuidance(pipeline, **FAST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        first, second = (aug(photo(), 0, {"name": "cat"})[0] for _ in range(2))
        torch.manual_seed(5)
        again = aug(photo(), 0, {"name": "cat"})[0]
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(second))


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"prompt": ["a {name}", "one {name}"]}])
def test_image_depends_on_its_own_stream_alone(pipeline, options):
    aug = RealGuidance(pipeline, **FAST, **options)
    images = [photo(seed=i) for i in range(4)]
    metadata = [{"name": name, "mask": disc()} for name in ("cat", "dog", "motor", "toy train")]

    def augment(order):
        results, edits = aug.augment(
            *([items[i] for i in order] for items in (images, [0] * 4, metadata)),
            [stream(100 + i) for i in order],
        )
        return {i: (pixels(r), e) for i, r, e in zip(order, results, edits)}

    together = augment([0, 1, 2, 3])
    for order in ([2], [3, 2], [1, 0, 2]):
        for i, (result, edits) in augment(order).items():
            assert np.abs(result - together[i][0]).max() <= 2
            assert edits == together[i][1]
    assert all(np.array_equal(augment([0, 1, 2, 3])[i][0], together[i][0]) for i in range(4))


def test_other_seed_other_image(pipeline):
    aug = RealGuidance(pipeline, **FAST)
    first, second = (aug(photo(), 0, {"name": "cat"}, stream(seed))[0] for seed in (1, 2))
    assert np.abs(pixels(first) - pixels(second)).mean() > 1


def test_edit_says_what_was_done(pipeline):
    aug = RealGuidance(
        pipeline, prompt="the {name} at night", strength=1, guidance_scale=2, mask=1, inverted=1,
        num_inference_steps=2,
    )  # fmt: skip
    metadata = [{"name": "stop_{sign}", "mask": disc()}]  # captions have blanks in such names
    _, edits = aug.augment([photo()], [0], metadata, [stream(0)])
    expected = Edit("real-guidance", "the stop {sign} at night", 1.0, 2.0, True, True)
    assert edits == [[expected]]


def test_one_of_several_prompts_is_drawn_for_each_image(pipeline):
    prompts = ["a photo of a {name}", "a rendering of a {name}", "one {name}"]
    aug = RealGuidance(pipeline, prompt=prompts, num_inference_steps=1, strength=1)
    count = 24
    _, edits = aug.augment(
        [photo((8, 8))] * count, [0] * count, [{"name": "cat"}] * count,
        [stream(i) for i in range(count)],
    )  # fmt: skip
    drawn = Counter(each[0].prompt for each in edits)
    assert drawn.keys() == {prompt.format(name="cat") for prompt in prompts}
    assert min(drawn.values()) >= 3


def test_model_works_at_the_resolution_asked_for(pipeline, monkeypatch):
    sides = []
    forward = pipeline.unet.forward

    def spy(sample, *args, **kwargs):
        sides.append(tuple(sample.shape[-2:]))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    for resolution, side in ((None, 16), (48, 24)):
        sides.clear()
        aug = RealGuidance(pipeline, resolution=resolution, num_inference_steps=1, strength=1)
        assert aug(photo(), 0, {"name": "cat"}, stream(0))[0].size == (48, 40)
        assert set(sides) == {(side, side)}


# --- strength --------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan"), float("inf")])
def test_strength_outside_its_range(pipeline, strength):
    with pytest.raises(UserError, match=r"--strength: got .*expected a number in \(0, 1\]"):
        RealGuidance(pipeline, strength=strength)


def test_strength_without_a_step(pipeline):
    with pytest.raises(UserError, match=r"--strength: 0\.1 of 9 steps .* 10 or more"):
        RealGuidance(pipeline, strength=0.1, num_inference_steps=9)
    RealGuidance(pipeline, strength=0.1, num_inference_steps=10)


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.integers(1, 100))
@example(0.07, 1)
@example(1 / 49, 49)
@example(1 / 3, 1)
def test_steps_advised_are_enough_and_no_fewer_are(strength, steps):
    try:
        check_strength(strength, steps)
        assert denoising_steps(strength, steps) >= 1
    except UserError as error:
        advised = int(str(error).split("--num_inference_steps ")[1].split()[0])
        assume(strength * 1e6 > 1.5)
        assert check_strength(strength, advised) == strength
        assert denoising_steps(strength, advised - 1) == 0


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("strength, steps", [(1.0, 3), (0.5, 6), (0.34, 3), (0.99, 4)])
def test_unet_runs_as_many_steps_as_said(pipeline, monkeypatch, strength, steps, mask):
    calls = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    aug = RealGuidance(pipeline, strength=strength, num_inference_steps=steps, mask=mask)
    aug(photo(), 0, {"name": "cat", "mask": disc()}, stream(0))
    assert len(calls) == denoising_steps(strength, steps)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_guidance_scale_is_finite(pipeline, value):
    with pytest.raises(UserError, match=r"--guidance_scale: got (nan|inf)"):
        RealGuidance(pipeline, guidance_scale=value)


# --- prompts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, field",
    [
        ("a {foo}", "foo"),
        ("a {}", ""),
        ("a {0}", "0"),
        ("a {name.__class__}", "name.__class__"),
        ("a {name[0]}", "name[0]"),
        ("a {name!r}", "name"),
        ("a {name:>9}", "name"),
        ("a {name:{name}}", "name"),
        ("a {Name}", "Name"),
    ],
)
def test_prompt_with_other_fields_is_refused(pipeline, prompt, field):
    for make in (check_prompt, lambda text: RealGuidance(pipeline, prompt=["a {name}", text])):
        with pytest.raises(UserError) as refused:
            make(prompt)
        assert f"has the field {{{field}}}; known: {{name}}, " in str(refused.value)


@pytest.mark.parametrize("prompt", ["a {name", "a }", "{"])
def test_prompt_with_single_braces_is_refused(prompt):
    with pytest.raises(UserError, match=r"--prompt: .* \{\{ means a plain brace"):
        check_prompt(prompt)


@pytest.mark.parametrize("prompt", ["a photo", "", "a {name} and {name}", "a {{name}} {name}"])
def test_good_prompts_pass(prompt):
    assert check_prompt(prompt) == prompt


# --- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("value", [255, 1])
def test_only_the_region_is_edited(pipeline, inverted, value):
    aug = RealGuidance(pipeline, mask=True, inverted=inverted, num_inference_steps=2, strength=1)
    source, mask = photo((53, 41)), disc((53, 41))
    metadata = {"name": "cat", "mask": mask // 255 * value}
    result = aug(source, 0, metadata, stream(0))[0]
    edited = (mask > 0) != inverted
    assert np.array_equal(pixels(result)[~edited], pixels(source)[~edited])
    changed = (pixels(result) != pixels(source)).any(axis=-1)
    assert changed[edited].mean() > 0.95


@pytest.mark.parametrize("value, same", [(0, True), (255, False)])
def test_mask_of_nothing_and_of_everything(pipeline, value, same):
    aug = RealGuidance(pipeline, mask=True, **FAST)
    metadata = {"name": "cat", "mask": np.full((40, 48), value, np.uint8)}
    result = aug(photo(), 0, metadata, stream(0))[0]
    assert np.array_equal(pixels(result), pixels(photo())) == same


def test_region_grows_and_has_a_seam(pipeline):
    options = {"mask": True, "strength": 1, "num_inference_steps": 2}
    metadata = {"name": "cat", "mask": disc()}
    far = ndimage.distance_transform_edt(disc() == 0)

    def changed(**more):
        image, _ = RealGuidance(pipeline, **options, **more)(photo(), 0, metadata, stream(0))
        return (pixels(image) != pixels(photo())).any(axis=-1)

    assert changed(mask_grow_radius=4)[(far > 2) & (far <= 4)].mean() > 0.9
    assert not changed(mask_grow_radius=4)[far > 4].any()
    assert changed(mask_feather=5)[(far > 0) & (far < 3)].mean() > 0.7
    assert not changed(mask_feather=5)[far > 5].any()


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_wide_photo_keeps_its_shape_unless_told_otherwise(pipeline, monkeypatch, fit):
    """A disc at next to no strength comes back as a disc; the square shows it round or not."""
    seen = []
    preprocess = pipeline.image_processor.preprocess
    monkeypatch.setattr(
        pipeline.image_processor,
        "preprocess",
        lambda image, *a: seen.append(image) or preprocess(image),
    )
    wide = Image.fromarray(np.repeat(disc((96, 48))[..., None], 3, axis=2))
    aug = RealGuidance(pipeline, fit=fit, num_inference_steps=50, strength=0.02)
    monkeypatch.setattr(aug.edit.pipeline, "image_processor", pipeline.image_processor)
    image, _ = aug(wide, 0, {"name": "cat"}, stream(0))
    assert image.size == (96, 48)
    square = np.asarray(seen[0])[..., 0] > 127
    if fit == "pad":
        square = square[8:24]  # without what is mirrored
    if fit != "crop":  # there the disc lies outside
        rows, columns = (np.ptp(np.flatnonzero(square.any(axis=axis))) for axis in (1, 0))
        assert (rows / columns > 1.5) == (fit == "squash")


@pytest.mark.parametrize("count", [5, 9])  # halved once, and again
@pytest.mark.parametrize("mask", [False, True])
def test_what_does_not_fit_into_memory_is_halved(pipeline, monkeypatch, caplog, mask, count):
    metadata = [{"name": "cat", "mask": disc()}] * count

    def augment(aug):
        streams = [stream(i) for i in range(count)]
        images, _ = aug.augment([photo()] * count, [0] * count, metadata, streams)
        return [pixels(image) for image in images]

    expected = augment(RealGuidance(pipeline, mask=mask, **FAST))
    aug, sizes = RealGuidance(pipeline, mask=mask, **FAST), []
    kind = type(aug.edit.pipeline)
    call = kind.__call__

    def small(self, *args, generator, **kwargs):
        torch.randn(3, generator=generator[0])  # what an attempt that fails has drawn
        if len(generator) > 2:
            raise torch.cuda.OutOfMemoryError
        generator[0].manual_seed(generator[0].initial_seed())
        if not mask:
            torch.randn(1, 4, 16, 16, generator=generator[0])
        sizes.append(len(generator))
        return call(self, *args, generator=generator, **kwargs)

    monkeypatch.setattr(kind, "__call__", small)
    for x, y in zip(augment(aug), expected, strict=True):
        assert np.abs(x - y).max() <= 2
    assert sum(sizes) == count and max(sizes) == 2
    assert "now 2 images per batch" in caplog.text
    assert augment(aug) and aug.edit.batch_size == 2


def test_single_image_that_does_not_fit_says_what_to_do(pipeline, monkeypatch):
    aug = RealGuidance(pipeline, **FAST)

    def full(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(type(aug.edit.pipeline), "__call__", full)
    with pytest.raises(UserError, match="memory is too small for a single image: use --low_m"):
        aug(photo(), 0, {"name": "cat"}, stream(0))


def test_fields_of_prompts(pipeline, tmp_path):
    path = embeddings(tmp_path / "a.safetensors")
    prompt = "{name}, {token}, {description}"
    aug = TextualInversion(path, pipeline, prompt=prompt, **FAST)
    metadata = [{"name": "cat", "description": "a {grey} one"}]
    _, edits = aug.augment([photo()], [0], metadata, [stream(0)])
    assert edits[0][0].prompt == "<cat>, <cat>, a {grey} one"
    with pytest.raises(UserError, match=r"asks for .token., and only --aug textual-inversion has"):
        RealGuidance(pipeline, prompt="a {token}", **FAST)(photo(), 0, {"name": "cat"}, stream(0))
    with pytest.raises(UserError, match=r"asks for .description., and the dataset describes no"):
        RealGuidance(pipeline, prompt="{description}", **FAST)(
            photo(), 0, {"name": "cat"}, stream(0)
        )


def test_mask_is_needed_only_where_it_is_used(pipeline):
    assert RealGuidance(pipeline, mask=1, **FAST).needs_mask is True
    assert RealGuidance(pipeline, mask=0, **FAST).needs_mask is False
    with pytest.raises(UserError, match=r"no mask for cat/1\.png, dog, and --mask 1"):
        masks_of([{"name": "a", "mask": disc()}, {"name": "cat", "source": "cat/1.png"},
                  {"name": "dog"}])  # fmt: skip


def test_inverted_needs_a_mask(pipeline):
    with pytest.raises(UserError, match="--inverted 1 needs --mask 1"):
        RealGuidance(pipeline, inverted=True)


# --- sharing a pipeline ----------------------------------------------------------------------


def test_instances_share_the_unet_and_nothing_that_changes(pipeline, tmp_path):
    plain, masked = RealGuidance(pipeline, **FAST), RealGuidance(pipeline, mask=True, **FAST)
    word = TextualInversion(embeddings(tmp_path / "a.safetensors"), pipeline, **FAST)
    pipes = [aug.edit.pipeline for aug in (plain, masked, word)]
    assert all(pipe.unet is pipeline.unet and pipe.vae is pipeline.vae for pipe in pipes)
    assert [type(pipe).__name__ for pipe in pipes] == [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionImg2ImgPipeline",
    ]
    assert pipes[2].tokenizer is not pipeline.tokenizer
    assert pipes[2].text_encoder is not pipeline.text_encoder


def test_pipeline_is_left_as_it_was(pipeline, tmp_path):
    before = copy.deepcopy([pipeline.text_encoder.state_dict(), pipeline.unet.state_dict()])
    vocabulary = dict(pipeline.tokenizer.get_vocab())
    plain = RealGuidance(pipeline, **FAST)
    expected = plain(photo(), 0, {"name": "cat"}, stream(0))[0]
    word = TextualInversion(embeddings(tmp_path / "a.safetensors"), pipeline, mask=True, **FAST)
    word(photo(), 0, {"name": "cat", "mask": disc()}, stream(0))
    assert pipeline.tokenizer.get_vocab() == vocabulary
    after = [pipeline.text_encoder.state_dict(), pipeline.unet.state_dict()]
    for old, new in zip(before, after):
        assert old.keys() == new.keys()
        assert all(torch.equal(old[key], new[key]) for key in old)
    again = plain(photo(), 0, {"name": "cat"}, stream(0))[0]
    assert np.array_equal(pixels(expected), pixels(again))


def test_each_instance_keeps_its_own_words(pipeline, small_model, tmp_path):
    """The predecessors gave every later trial the words of the first."""
    paths = [embeddings(tmp_path / f"{n}.safetensors", seed=n, num_vectors=n) for n in (1, 4)]

    def edit(aug):
        return pixels(aug(photo(), 0, {"name": "cat"}, stream(0))[0])

    shared = [TextualInversion(path, pipeline, **FAST, guidance_scale=30) for path in paths]
    results = [edit(aug) for aug in shared]
    assert np.abs(results[0] - results[1]).mean() > 0.2
    assert np.array_equal(edit(shared[0]), results[0])  # not changed by the second
    for path, result in zip(paths, results):
        alone = TextualInversion(path, model_path=small_model, **FAST, guidance_scale=30)
        assert np.array_equal(edit(alone), result)


def test_pipeline_or_model_is_needed(tmp_path):
    with pytest.raises(UserError, match="no model is named: give --model_path"):
        RealGuidance()
    with pytest.raises(UserError, match=r"model folder .* does not exist"):
        RealGuidance(model_path=str(tmp_path / "absent"))


# --- learned words ---------------------------------------------------------------------------


def test_all_vectors_guide_the_edit(pipeline, tmp_path):
    path = embeddings(tmp_path / "a.safetensors", num_vectors=3, name="MOTOR Block", token="<m>")
    aug = TextualInversion(path, pipeline, prompt="one {name} at night", **FAST)
    seen = []
    encode = aug.edit.pipeline.text_encoder.forward

    def spy(ids, *args, **kwargs):
        seen.append(ids)
        return encode(ids, *args, **kwargs)

    aug.edit.pipeline.text_encoder.forward = spy
    _, edits = aug.augment([photo()], [0], [{"name": "MOTOR Block"}], [stream(0)])
    assert edits[0][0].prompt == "one <m> at night"
    assert edits[0][0].aug == "textual-inversion"
    tokenizer = aug.edit.pipeline.tokenizer
    assert tokenizer.convert_ids_to_tokens(seen[0][0])[1:7] == [
        "one</w>", "<m>", "<m>_1", "<m>_2", *tokenizer.tokenize("at night")[:2],
    ]  # fmt: skip


def test_words_of_a_merged_file(pipeline, tmp_path):
    files = [
        embeddings(tmp_path / "1.safetensors", 1, name="Cat", token="<cat>"),
        embeddings(tmp_path / "2.safetensors", 2, name="cat", token="<cat-2>"),
    ]
    merge_embeddings(list(map(LearnedWords.read, files)), tmp_path / "merged.safetensors", {})
    aug = TextualInversion(tmp_path / "merged.safetensors", pipeline, **FAST)
    assert (aug.token("Cat"), aug.token("cat")) == ("<cat>", "<cat-2>")
    with pytest.raises(UserError, match="class 'CAT' has no learned word"):
        aug.token("CAT")
    with pytest.raises(UserError, match="class 'dog' has no learned word"):
        aug(photo(), 0, {"name": "dog"}, stream(0))


def test_old_file_gives_words_by_the_naming_rule(pipeline, tmp_path):
    torch.save({"<Stop_Sign>": torch.ones(32)}, tmp_path / "old.bin")
    aug = TextualInversion(tmp_path / "old.bin", pipeline, **FAST)
    assert aug.token("Stop Sign") == "<stop_sign>"


def test_file_of_another_model_s_width(pipeline, tmp_path):
    path = embeddings(tmp_path / "a.safetensors", dim=48)
    with pytest.raises(UserError, match=r"a\.safetensors holds rows of width 48, .* has 32"):
        TextualInversion(path, pipeline)


def test_file_with_a_token_of_the_model(pipeline, tmp_path):
    path = embeddings(tmp_path / "a.safetensors", token="<|startoftext|>")
    with pytest.raises(UserError, match=r"a\.safetensors: Token <\|startoftext\|> already in"):
        TextualInversion(path, pipeline)


def test_missing_file(pipeline, tmp_path):
    with pytest.raises(UserError, match=r"absent\.safetensors does not exist"):
        TextualInversion(tmp_path / "absent.safetensors", pipeline)


# --- compositions ----------------------------------------------------------------------------


class Mark(GenerativeAugmentation):
    """Adds `value` to the red of every pixel and notes it."""

    def __init__(self, value: int, needs_mask=False):
        self.value, self.needs_mask, self.batches = value, needs_mask, []

    def augment(self, images, labels, metadata, generators):
        self.batches.append(list(labels))
        edits = [[Edit(f"mark-{self.value}", meta["name"], 1.0, 1.0, False, False)]
                 for meta in metadata]  # fmt: skip
        return [image.point(lambda v: min(v + self.value, 255)) for image in images], edits


def compose(kind, values, probs, count, first_seed=0):
    marks = [Mark(value) for value in values]
    images, edits = kind(marks, probs).augment(
        [Image.new("RGB", (2, 2))] * count, list(range(count)),
        [{"name": str(i)} for i in range(count)], [stream(first_seed + i) for i in range(count)],
    )  # fmt: skip
    values = [image.getpixel((0, 0))[0] for image in images]
    names = [[edit.aug for edit in each] for each in edits]
    assert [each[0].prompt for each in edits if each] == [str(i) for i in range(count) if edits[i]]
    return values, names, marks


@pytest.mark.parametrize("probs, shares", [(None, [1 / 3] * 3), ([0.5, 0.3, 0.2], [0.5, 0.3, 0.2])])
def test_parallel_draws_one_for_each_image(probs, shares):
    values, names, marks = compose(ComposeParallel, [10, 20, 30], probs, 200)
    assert names == [[f"mark-{value}"] for value in values]
    for value, share in zip((10, 20, 30), shares):
        # 200 draws: four standard deviations
        assert abs(values.count(value) / 200 - share) < 4 * (share * (1 - share) / 200) ** 0.5
    for mark in marks:  # one batch each, of the images that drew it
        assert mark.batches == [[i for i, value in enumerate(values) if value == mark.value]]


def test_parallel_choice_belongs_to_the_image():
    values, _, _ = compose(ComposeParallel, [10, 20, 30], None, 40)
    assert compose(ComposeParallel, [10, 20, 30], None, 20, first_seed=20)[0] == values[20:]


def test_parallel_with_certain_probabilities():
    values, _, marks = compose(ComposeParallel, [10, 20, 30], [0, 1, 0], 30)
    assert values == [20] * 30
    assert [len(mark.batches) for mark in marks] == [0, 1, 0]


def test_sequential_applies_all_in_order():
    values, names, marks = compose(ComposeSequential, [10, 20, 30], None, 5)
    assert values == [60] * 5
    assert names == [["mark-10", "mark-20", "mark-30"]] * 5
    assert [mark.batches for mark in marks] == [[[0, 1, 2, 3, 4]]] * 3


def test_sequential_with_probabilities():
    values, names, marks = compose(ComposeSequential, [10, 20, 30], [0, 1, 0.5], 200)
    assert set(values) == {20, 50}
    assert {20: ["mark-20"], 50: ["mark-20", "mark-30"]}[values[0]] == names[0]
    assert 70 < values.count(50) < 130
    assert marks[0].batches == []
    again = compose(ComposeSequential, [10, 20, 30], [0, 1, 0.5], 100, first_seed=100)[0]
    assert again == values[100:]


def test_sequential_may_leave_an_image_as_it_is():
    values, names, _ = compose(ComposeSequential, [10], [0], 3)
    assert (values, names) == ([0, 0, 0], [[], [], []])


def test_sequence_works_on_what_came_before(pipeline):
    first = RealGuidance(pipeline, **FAST)
    second = RealGuidance(pipeline, mask=True, num_inference_steps=2, strength=1)
    both = ComposeSequential([first, second])
    assert both.needs_mask
    source, mask = photo(), disc()
    generator = stream(0)
    result = both(source, 0, {"name": "cat", "mask": mask}, generator)[0]
    generator = stream(0)
    torch.rand((), generator=generator, dtype=torch.float64)
    middle = first(source, 0, {"name": "cat"}, generator)[0]
    assert np.array_equal(pixels(result)[mask == 0], pixels(middle)[mask == 0])
    assert not np.array_equal(pixels(result)[mask > 0], pixels(middle)[mask > 0])


def test_composition_needs_masks_where_one_part_does():
    for kind in (ComposeParallel, ComposeSequential):
        assert kind([Mark(1), Mark(2, needs_mask=True)]).needs_mask
        assert not kind([Mark(1), Mark(2)]).needs_mask


@pytest.mark.parametrize(
    "probs, compose, message",
    [
        ([0.5], "parallel", "got 1 number for 2 augmentations"),
        ([0.5, 0.5, 0], "sequential", "got 3 numbers for 2 augmentations"),
        ([0.5, 0.6], "parallel", r"0\.5 0\.6 sum to 1\.1; parallel needs sum 1"),
        ([0, 0], "parallel", "sum to 0"),
        ([1.5, -0.5], "parallel", r"got 1\.5 -0\.5, expected numbers in \[0, 1\]"),
        ([1.5, 0.5], "sequential", r"expected numbers in \[0, 1\]"),
        ([float("nan"), 1], "parallel", r"expected numbers in \[0, 1\]"),
    ],
)
def test_wrong_probabilities(probs, compose, message):
    with pytest.raises(UserError, match=f"--probs: .*{message}"):
        check_probs(probs, 2, compose)


def test_default_probabilities():
    assert check_probs(None, 4, "parallel") == [0.25] * 4
    assert check_probs(None, 3, "sequential") == [1.0] * 3
    assert check_probs([0.1] * 10, 10, "parallel") == [0.1] * 10  # sums to 1 but for rounding
    assert check_probs([0.2, 0.9], 2, "sequential") == [0.2, 0.9]


# --- the contract ----------------------------------------------------------------------------


class Predecessor(GenerativeAugmentation):
    """Has `forward` alone, and draws from torch's global random state."""

    def forward(self, image, label, metadata):
        colour = tuple(torch.randint(256, (3,)).tolist())
        return Image.new("RGB", image.size, colour), label


def test_predecessor_s_augmentation_works():
    aug = Predecessor()
    image, label = aug(photo((9, 5)), 3, {"name": "cat"}, stream(4))
    assert (image.size, label) == ((9, 5), 3)
    before = torch.get_rng_state()
    images, edits = aug.augment([photo(), photo((9, 5))], [0, 3], [{}, {}], [stream(8), stream(4)])
    assert torch.equal(torch.get_rng_state(), before)
    assert [each.size for each in images] == [(48, 40), (9, 5)]
    assert np.array_equal(pixels(images[1]), pixels(image))  # from its own stream
    assert pixels(images[0])[0, 0].tolist() != pixels(images[1])[0, 0].tolist()
    assert edits == [[], []]
    composed, edits = ComposeParallel([aug, Mark(1)], [1, 0]).augment(
        [photo()], [0], [{"name": "cat"}], [stream(4)]
    )
    assert composed[0].size == (48, 40) and edits == [[]]


@pytest.mark.parametrize("returned", [None, photo(), [photo(), 3]])
def test_predecessor_s_augmentation_that_returns_something_else_is_named(returned):
    aug = Predecessor()
    aug.forward = lambda image, label, metadata: returned
    with pytest.raises(UserError, match=r"Predecessor.forward returned \w+, expected an image and"):
        aug(photo(), 3, {"name": "cat"}, stream(4))


class Faulty(GenerativeAugmentation):
    """Gives what `change` makes of the images and of the lists of edits."""

    def __init__(self, change):
        self.change = change

    def augment(self, images, labels, metadata, generators):
        return self.change(images, [[] for _ in images])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda images, edits: (images[:1], edits), "1 images and 2 lists of edits for 2 photos"),
        (lambda images, edits: (images, edits[:1]), "2 images and 1 lists of edits for 2 photos"),
        (lambda images, edits: (images * 2, edits * 2), "4 images and 4 lists of edits for 2"),
        (lambda images, edits: ([images[0], images[1].rotate(90, expand=True)], edits),
         r"an image of size \(40, 48\) for a photo of size \(48, 40\)"),
        (lambda images, edits: ([pixels(image) for image in images], edits),
         "ndarray for an image"),
        (lambda images, edits: images, "list; expected a list of images and a list of each image"),
        (lambda images, edits: None, "NoneType; expected a list of images and"),
        (lambda images, edits: (images[0], edits), "tuple; expected a list of images and"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("outer", [
    lambda aug: ComposeParallel([aug]),
    lambda aug: ComposeSequential([Mark(1), aug]),
    lambda aug: PerClass(aug, lambda name: None),
])  # fmt: skip
def test_augmentation_that_breaks_the_contract_is_named(change, message, outer):
    batch = [photo()] * 2, [0] * 2, [{"name": "cat"}] * 2, [stream(0), stream(1)]
    with pytest.raises(UserError, match=rf"--aug: test_augmentations:Faulty returned {message}"):
        outer(Faulty(change)).augment(*batch)


def test_augmentation_without_methods_says_so():
    with pytest.raises(NotImplementedError, match="Empty implements no augment"):
        type("Empty", (GenerativeAugmentation,), {})()(photo(), 0, {})


def test_augmentations_by_name(tmp_path, monkeypatch):
    assert augmentation_class("real-guidance") is RealGuidance
    assert augmentation_class("textual-inversion") is TextualInversion
    assert set(AUGMENTATIONS) == {"real-guidance", "textual-inversion", "background", "paste"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    (tmp_path / "my_augs_of_this_test.py").write_text(
        "from semantic_aug.generative_augmentation import GenerativeAugmentation\n"
        "class Mine(GenerativeAugmentation): pass\n"
    )
    assert augmentation_class("my_augs_of_this_test:Mine").__name__ == "Mine"


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "real_guidance",
            "expected real-guidance, textual-inversion, background, paste, or package",
        ),
        ("", "expected real-guidance"),
        ("no_such_module:X", "cannot import 'no_such_module'"),
        (":X", "got ':X', expected real-guidance"),
        ("json:NoSuchClass", "json has no class NoSuchClass"),
        ("json:JSONDecoder", "is not a GenerativeAugmentation"),
        ("json:loads", "is not a GenerativeAugmentation"),
        ("json:decoder", "is not a GenerativeAugmentation"),
    ],
)
def test_wrong_augmentation_names(name, message):
    with pytest.raises(UserError, match=f"--aug: .*{message}"):
        augmentation_class(name)


def test_module_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_augs_of_this_test.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError: division by zero"):
        augmentation_class("broken_augs_of_this_test:X")


def test_models_of_velocity_and_other_widths_work(tmp_path):
    pipeline = build_pipeline(hidden_size=48, prediction_type="v_prediction")
    path = embeddings(tmp_path / "a.safetensors", dim=48)
    image = TextualInversion(path, pipeline, **FAST)(photo(), 0, {"name": "cat"}, stream(0))[0]
    assert image.size == (48, 40)
    assert pixels(image).std() > 1
