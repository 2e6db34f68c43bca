"""Learning words: the optimisation, fine_tune.py, and aggregate_embeddings.py."""

import copy
import json
import shlex
import shutil
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest
import torch
from conftest import build_pipeline, draw_photo
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import mse_loss

import aggregate_embeddings
import fine_tune
import fine_tune_upstream
from semantic_aug import UserError, stable_hash
from semantic_aug.diffusion import inspect_model, load_pipeline, load_tokenizer
from semantic_aug.embeddings import read_embeddings, read_header, write_embeddings
from semantic_aug.experiment import read_config
from semantic_aug.textual_inversion import (
    TEMPLATES,
    TrainingDiverged,
    TrainingSettings,
    add_tokens,
    check_num_vectors,
    initial_rows,
    initializer_id,
    latent_posteriors,
    noise_target,
    photo_order,
    rows_in_place,
    template_ids,
    train_rows,
)

CLASSES = ("cat", "stop sign", "toy train")
FOLDERS = ("cat", "stop_sign", "toy_train")


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline(small_model):
    return load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokenizer(small_model):
    return load_tokenizer(inspect_model(small_model))


@pytest.fixture(scope="module")
def photos_tensor():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    return torch.stack([torch.stack([x, y, x * y]), torch.stack([y, -x, 0 * x])])


# --- words to start from ---------------------------------------------------------------------


def test_rows_start_at_the_initializer_and_a_little_apart():
    start = torch.randn(32, generator=stream(1))
    rows = initial_rows(start, 4, stream(2))
    assert rows.shape == (4, 32) and rows.dtype == torch.float32
    assert torch.equal(rows[0], start)
    distances = torch.pdist(rows)
    assert distances.min() > 0.05 * start.norm() and distances.max() < 0.5 * start.norm()
    assert torch.equal(rows, initial_rows(start, 4, stream(2)))
    assert not torch.equal(rows[1:], initial_rows(start, 4, stream(3))[1:])
    assert torch.equal(initial_rows(start.half(), 1, stream(2))[0], start.half().float())


@pytest.mark.parametrize(
    "class_name, word",
    [
        ("cat", "cat"),
        ("CAT", "cat"),
        ("stop sign", "sign"),
        ("toy-train", "train"),
        ("small_Motor", "motor"),
        ("motor qxzzyv", "motor"),  # the last word is several tokens
    ],
)
def test_word_starts_from_the_last_single_token_of_its_name(tokenizer, class_name, word):
    found = initializer_id(tokenizer, None, class_name)
    assert tokenizer.convert_ids_to_tokens(found) == word + "</w>"


@pytest.mark.parametrize("class_name", ["qxzzyv", "", " ", "_", "\u81ea\u52d5\u8eca", "\U0001f697"])
def test_word_without_a_single_token_starts_somewhere(tokenizer, class_name):
    assert 0 <= initializer_id(tokenizer, None, class_name) < len(tokenizer)


def test_initializer_is_one_token(tokenizer):
    (motor,) = tokenizer("motor", add_special_tokens=False).input_ids
    assert initializer_id(tokenizer, "motor", "cat") == motor
    assert initializer_id(tokenizer, " Motor ", "cat") == motor
    several = tokenizer("stop sign", add_special_tokens=False).input_ids
    assert len(several) == 2
    for text, count in (("stop sign", 2), ("", 0)):
        message = f"--initializer_token: '{text}' is {count} tokens"
        with pytest.raises(UserError, match=message):
            initializer_id(tokenizer, text, "cat")


@pytest.mark.parametrize("kind", ["object", "style"])
def test_as_many_vectors_as_the_prompt_holds(tokenizer, kind):
    templates = TEMPLATES[kind]
    with pytest.raises(UserError, match=r"--num_vectors: got 0, expected 1 to \d+: ") as refused:
        check_num_vectors(tokenizer, 0, templates)
    most = int(str(refused.value).split("expected 1 to ")[1].split(":")[0])
    check_num_vectors(tokenizer, 1, templates)
    check_num_vectors(tokenizer, most, templates)
    with pytest.raises(UserError, match=f"--num_vectors: got {most + 1}, expected 1 to {most}"):
        check_num_vectors(tokenizer, most + 1, templates)
    for count, fits in ((most, True), (most + 1, False)):
        extended = copy.deepcopy(tokenizer)
        first = add_tokens(extended, "<x>", count)[0]
        ids = template_ids(extended, templates, "<x>", count)
        assert ids.shape == (len(templates), 77)
        whole = (ids >= first).sum(dim=1) == count
        closed = (ids[:, -1] == extended.eos_token_id) | (ids[:, -1] == extended.pad_token_id)
        assert bool((whole & closed).all()) == fits


def test_templates_hold_the_word_once():
    for templates in TEMPLATES.values():
        assert len(set(templates)) == len(templates) > 10
        assert all(template.count("{}") == 1 for template in templates)
        assert all(template.format("<x>").count("<x>") == 1 for template in templates)


def test_rows_take_the_place_of_new_ids_alone(pipeline):
    encoder = pipeline.text_encoder
    table = encoder.get_input_embeddings()
    rows, first = torch.randn(2, 32, generator=stream(0)), len(pipeline.tokenizer)
    ids = torch.tensor([[5, first, first + 1, 7, first + 1]])
    with rows_in_place(encoder, rows, first):
        found = encoder.get_input_embeddings()(ids)
        assert encoder.get_input_embeddings() is not table
    expected = [table.weight[5], rows[0], rows[1], table.weight[7], rows[1]]
    assert torch.equal(found[0], torch.stack(expected))
    with pytest.raises(KeyError), rows_in_place(encoder, rows, first):
        raise KeyError
    assert encoder.get_input_embeddings() is table


# --- photos ----------------------------------------------------------------------------------


def test_posteriors_are_those_of_photos_and_their_mirror_images(pipeline, photos_tensor):
    means, deviations = latent_posteriors(pipeline.vae, photos_tensor)
    assert means.shape == deviations.shape == (2, 2, 4, 16, 16)
    scale = pipeline.vae.config.scaling_factor
    for mirrored, photos in enumerate((photos_tensor, photos_tensor.flip(-1))):
        with torch.no_grad():
            direct = pipeline.vae.encode(photos).latent_dist
        assert torch.allclose(means[:, mirrored], direct.mean * scale, atol=1e-5)
        assert torch.allclose(deviations[:, mirrored], direct.std * scale, atol=1e-5)
        # What the pipeline itself makes of a posterior's sample.
        noise = torch.randn(direct.mean.shape, generator=stream(4))
        sample = direct.sample(generator=stream(4)) * scale
        ours = means[:, mirrored] + deviations[:, mirrored] * noise
        assert torch.allclose(ours, sample, atol=1e-5)
    assert not torch.allclose(means[:, 0], means[:, 1], atol=1e-3)


def test_posteriors_of_a_vae_with_a_shift(photos_tensor):
    vae = build_pipeline().vae
    plain = latent_posteriors(vae, photos_tensor)
    vae.register_to_config(shift_factor=0.5)
    means, deviations = latent_posteriors(vae, photos_tensor)
    assert torch.allclose(means, plain[0] - 0.5 * vae.config.scaling_factor, atol=1e-6)
    assert torch.equal(deviations, plain[1])


def test_every_pass_shows_each_photo_once():
    order = photo_order(5, stream(0))
    passes = [[next(order) for _ in range(5)] for _ in range(6)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes)
    assert len({tuple(each) for each in passes}) > 3


# --- the loop --------------------------------------------------------------------------------

NUM_VECTORS = 3


def scheduler_of(pipeline, **options) -> DDPMScheduler:
    return DDPMScheduler.from_config(pipeline.scheduler.config, **options)


def start_rows(pipeline) -> torch.Tensor:
    table = pipeline.text_encoder.get_input_embeddings().weight
    return initial_rows(table[40], NUM_VECTORS, stream(9))


def train(pipeline, photos, seed=0, on_step=lambda *_: None, scheduler=None, **changes):
    """The rows after training from `start_rows`."""
    options = {
        "max_train_steps": 2,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
    }
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    first_id = add_tokens(tokenizer, "<x>", NUM_VECTORS)[0]
    return train_rows(
        pipeline,
        scheduler or scheduler_of(pipeline),
        start_rows(pipeline),
        first_id,
        template_ids(tokenizer, TEMPLATES["object"], "<x>", NUM_VECTORS),
        latent_posteriors(pipeline.vae, photos),
        TrainingSettings(**options | changes),
        stream(seed),
        on_step,
    )


def weights_of(pipeline) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, part in pipeline.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict().items()
    }


def test_all_rows_move_and_nothing_else_does(pipeline, photos_tensor):
    before, vocabulary = weights_of(pipeline), len(pipeline.tokenizer)
    rows = train(pipeline, photos_tensor)
    after = weights_of(pipeline)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(pipeline.tokenizer) == vocabulary
    modules = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert all(p.grad is None for module in modules for p in module.parameters())
    assert rows.shape == (NUM_VECTORS, 32) and rows.dtype == torch.float32
    assert not rows.requires_grad
    moved = (rows - start_rows(pipeline)).abs()
    assert (moved.mean(dim=1) > 5e-3).all()  # two Adam steps of 1e-2 in most places


def test_chance_comes_from_the_generator_alone(pipeline, photos_tensor):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = train(pipeline, photos_tensor)
        torch.manual_seed(2)
        state = torch.get_rng_state()
        assert torch.equal(train(pipeline, photos_tensor), first)
        assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(train(pipeline, photos_tensor, seed=1), first)


def loss_of(pipeline, rows, photos) -> float:
    """Denoising loss under a prompt with these rows, over one fixed set of noises."""
    tokenizer, scheduler = copy.deepcopy(pipeline.tokenizer), scheduler_of(pipeline)
    first_id = add_tokens(tokenizer, "<x>", len(rows))[0]
    ids = template_ids(tokenizer, ["a photo of a {}"], "<x>", len(rows)).repeat(128, 1)
    means, _ = latent_posteriors(pipeline.vae, photos)
    latents = means[:, 0].repeat(64, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=stream(77))
    steps = torch.randint(1000, (128,), generator=stream(78))
    noisy = scheduler.add_noise(latents, noise, steps)
    with torch.no_grad(), rows_in_place(pipeline.text_encoder, rows, first_id):
        predicted = pipeline.unet(noisy, steps, pipeline.text_encoder(ids)[0]).sample
    return float(mse_loss(predicted, noise))


def test_training_lowers_the_loss(pipeline, photos_tensor):
    before = loss_of(pipeline, start_rows(pipeline), photos_tensor)
    rows = train(
        pipeline, photos_tensor, max_train_steps=15, train_batch_size=4, learning_rate=0.05
    )
    assert loss_of(pipeline, rows, photos_tensor) < before - 1e-3


def test_no_learning_rate_no_change_but_for_no_weight_decay(pipeline, photos_tensor):
    rows = train(pipeline, photos_tensor, learning_rate=0.0)
    assert torch.equal(rows, start_rows(pipeline))


def test_batches_and_accumulation(pipeline, photos_tensor, monkeypatch):
    batches, losses, forward = [], [], pipeline.unet.forward

    def spy(sample, *args, **kwargs):
        batches.append(len(sample))
        return forward(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    train(
        pipeline, photos_tensor, train_batch_size=3, gradient_accumulation_steps=4,
        on_step=lambda step, loss, *_: losses.append((step, loss)),
    )  # fmt: skip
    assert batches == [3] * 8
    assert [step for step, _ in losses] == [1, 2]
    assert all(0.5 < loss < 2 for _, loss in losses)  # a mean, not a sum, of losses about 1


def test_accumulated_gradients_are_those_of_all_parts(pipeline, photos_tensor):
    """Without the first photo's part, Adam's first step would go elsewhere."""
    one = train(pipeline, photos_tensor, max_train_steps=1, train_batch_size=1)
    two = train(
        pipeline, photos_tensor, max_train_steps=1, train_batch_size=1,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    steps = [(rows - start_rows(pipeline)).sign() for rows in (one, two)]
    agreeing = (steps[0] == steps[1]).float().mean()
    assert 0.55 < agreeing < 0.999


@pytest.mark.parametrize(
    "name, rates",
    [
        ("constant", [1, 1, 1, 1]),
        ("constant_with_warmup", [0, 0.5, 1, 1]),
        ("linear", [0, 0.5, 1, 0.5]),
    ],
)
def test_learning_rate_follows_its_schedule(pipeline, photos_tensor, name, rates):
    seen = []
    train(
        pipeline, photos_tensor, max_train_steps=4, learning_rate=1e-3, lr_scheduler=name,
        lr_warmup_steps=2, on_step=lambda step, loss, rate, rows: seen.append(rate),
    )  # fmt: skip
    assert seen == pytest.approx([1e-3 * rate for rate in rates])


def test_what_the_unet_predicts(pipeline):
    latents, noise = (torch.randn(2, 4, 16, 16, generator=stream(seed)) for seed in (1, 2))
    steps = torch.tensor([10, 900])
    kept = scheduler_of(pipeline).alphas_cumprod[steps].reshape(2, 1, 1, 1)

    def target(kind):
        scheduler = scheduler_of(pipeline, prediction_type=kind)
        return noise_target(scheduler, latents, noise, steps)

    assert torch.equal(target("epsilon"), noise)
    assert torch.equal(target("sample"), latents)
    velocity = kept.sqrt() * noise - (1 - kept).sqrt() * latents
    assert torch.allclose(target("v_prediction"), velocity, atol=1e-6)
    with pytest.raises(UserError, match="predicts 'flow'; known: epsilon, v_prediction, sample"):
        target("flow")


def test_model_of_velocity_is_trained_on_velocity(pipeline, photos_tensor):
    losses = {}
    for kind in ("epsilon", "v_prediction"):
        train(
            pipeline, photos_tensor, max_train_steps=1, scheduler=scheduler_of(
                pipeline, prediction_type=kind
            ), on_step=lambda step, loss, *_, kind=kind: losses.setdefault(kind, loss),
        )  # fmt: skip
    assert abs(losses["epsilon"] - losses["v_prediction"]) > 1e-3


def test_gradient_checkpointing_gives_the_same_rows(small_model, pipeline, photos_tensor):
    expected = train(pipeline, photos_tensor, max_train_steps=3)
    saving = load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float32)
    calls = []
    for block in saving.unet.mid_block.resnets:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    saving.unet.enable_gradient_checkpointing()
    saving.text_encoder.activation_checkpointing_enable()
    saving.unet.train()
    saving.text_encoder.train()
    assert torch.allclose(train(saving, photos_tensor, max_train_steps=3), expected, atol=1e-5)
    assert len(calls) > 3 * len(saving.unet.mid_block.resnets)  # computed again going back


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_parts_may_be_in_half_precision(small_model, pipeline, photos_tensor, dtype):
    half = load_pipeline(inspect_model(small_model), torch.device("cpu"), dtype)
    assert half.unet.dtype == half.text_encoder.dtype == dtype
    rows, expected = train(half, photos_tensor), train(pipeline, photos_tensor)
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, expected, atol=5e-3)
    assert ((rows - start_rows(pipeline)).abs().mean(dim=1) > 5e-3).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverging_rows_are_an_error(pipeline, photos_tensor, value):
    means, deviations = latent_posteriors(pipeline.vae, photos_tensor)
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    first_id = add_tokens(tokenizer, "<x>", NUM_VECTORS)[0]
    settings = TrainingSettings(3, 2, 1, 1e-2, "constant", 0)
    with pytest.raises(TrainingDiverged, match=r"loss is (nan|inf) at step 1 \(learning rate 0.01"):
        train_rows(
            pipeline, scheduler_of(pipeline), torch.full((NUM_VECTORS, 32), value), first_id,
            template_ids(tokenizer, ["a {}"], "<x>", NUM_VECTORS), (means, deviations), settings,
            stream(0),
        )  # fmt: skip


def test_a_last_step_that_breaks_the_rows_is_an_error(pipeline, photos_tensor):
    with pytest.raises(TrainingDiverged, match="rows are not finite after step 1"):
        train(pipeline, photos_tensor, max_train_steps=1, learning_rate=float("inf"))


# --- fine_tune.py ----------------------------------------------------------------------------


@pytest.fixture
def tune(workdir, photos, small_model, capsys):
    """Run fine_tune.py on the small photos; returns the exit status and stderr."""

    def tune(*flags, name="e", model=small_model, main=fine_tune.main):
        argv = [
            "--dataset=folder", f"--data_dir={photos}", f"--experiment_name={name}",
            f"--pretrained_model_name_or_path={model}", "--max_train_steps=2",
            "--train_batch_size=1", "--report_to=none", *flags,
        ]  # fmt: skip
        return run(main, argv, capsys)

    return tune


def run(main, argv, capsys) -> tuple[int, str]:
    capsys.readouterr()
    try:
        main(argv)
        status = 0
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().err


def trial(name="e", seed=0, examples=1) -> Path:
    return Path("output", name, "fine-tuned", f"seed={seed}_ex={examples}")


def word(folder="cat", **where) -> Path:
    return trial(**where) / folder / "learned_embeds.safetensors"


def bytes_of(name="e") -> dict[str, bytes]:
    """The finished words of an experiment."""
    root = Path("output", name, "fine-tuned")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.glob("*/*/learned_embeds.safetensors")
    }


def fail(*args, **kwargs):
    raise AssertionError("this should not be called")


def test_one_word_for_each_class_and_trial(tune, tokenizer, pipeline, monkeypatch):
    loaded = []

    def count(*args):
        loaded.append(args)
        return load_pipeline(*args)

    monkeypatch.setattr(fine_tune, "load_pipeline", count)
    flags = ["--num_vectors=2", "--seed=3", "--num_trials=2", "--examples_per_class", "1", "2"]
    status, _ = tune(*flags)
    assert status == 0
    assert len(loaded) == 1  # for four trials of three classes
    names = [f"seed={seed}_ex={n}" for seed in (3, 4) for n in (1, 2)]
    files = [f"{each}/{folder}/learned_embeds.safetensors" for each in names for folder in FOLDERS]
    assert sorted(bytes_of()) == sorted(files)
    assert len(set(bytes_of().values())) == 12
    ids = tokenizer("sign", add_special_tokens=False).input_ids
    start = pipeline.text_encoder.get_input_embeddings().weight[ids[0]]
    seen = []
    for seed in (3, 4):
        path = word("stop_sign", seed=seed, examples=2)
        (token, rows), *rest = read_embeddings(path).items()
        assert (token, rows.shape, rest) == ("<stop_sign>", (2, 32), [])
        generator = stream(stable_hash("textual-inversion", seed, 2, "stop sign"))
        first = initial_rows(start, 2, generator)
        assert ((rows - first).abs().mean(dim=1) > 1e-4).all()
        assert (rows - first).abs().max() < 3 * 5e-4  # two steps of the default learning rate
        seen.append(rows)
        header = read_header(path)
        assert header == {
            "model": header["model"],
            "dataset": "folder",
            "class": "stop sign",
            "token": "<stop_sign>",
            "seed": str(seed),
            "examples_per_class": "2",
            "num_vectors": "2",
            "initializer": "sign",
            "steps": "2",
            "photos": header["photos"],
            "config_id": read_config(trial(seed=seed, examples=2))["id"],
            "format_version": "1",
        }
    assert not torch.equal(*seen)


def test_config_holds_settings_and_arguments(tune, small_model):
    tune("--classes", "cat")
    config = read_config(trial())
    assert config["settings"]["model"] == inspect_model(small_model).identity
    assert config["settings"]["resolution"] == 32  # the model's own
    assert config["settings"]["max_train_steps"] == 2
    assert config["arguments"]["class_names"] == list(CLASSES)
    assert "device" not in config["settings"] and "data_dir" not in config["settings"]


def test_equal_runs_give_equal_bytes_whatever_is_watched(tune):
    assert tune()[0] == 0
    expected = bytes_of()
    assert len(expected) == 3
    tune(name="again")
    assert bytes_of("again") == expected
    tune(
        "--validation_prompt=a photo of a *", "--num_validation_images=1", "--save_steps=1",
        "--report_to=tensorboard", name="watched",
    )  # fmt: skip
    assert bytes_of("watched") == expected
    made = []
    for index in (1, 0):
        tune("--shard_index", index, "--num_shards=2", name="shards")
        made.append(len(bytes_of("shards")))
    assert made == [1, 3]
    assert bytes_of("shards") == expected
    tune("--classes", "toy train", name="one")
    assert bytes_of("one").items() < expected.items()
    assert len(bytes_of("one")) == 1


def test_finished_words_are_skipped(tune, monkeypatch):
    tune("--classes", "cat", "toy train")
    before = {path: path.stat().st_mtime_ns for path in (word(), word("toy_train"))}
    status, err = tune()
    assert status == 0
    assert "seed=0_ex=1/cat: finished already, skipped" in err.splitlines()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert word("stop_sign").exists()
    monkeypatch.setattr(fine_tune, "load_pipeline", fail)
    status, err = tune("--device=cpu", "--shard_index=1", "--num_shards=3")
    assert (status, err.splitlines()[-1]) == (0, "nothing left to do for shard 1 of 3")


def test_other_settings_are_refused_by_name(tune, monkeypatch):
    tune("--classes", "cat")
    before = bytes_of()
    monkeypatch.setattr(fine_tune, "load_pipeline", fail)
    status, err = tune("--num_vectors=2", "--learning_rate=0.001", "--center_crop")
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("fine_tune.py: error: ")
    for text in (
        "num_vectors (there 1, now 2)", "learning_rate (there 0.0005, now 0.001)",
        "center_crop (there false, now true)", "--overwrite",
    ):  # fmt: skip
        assert text in err
    assert "train_batch_size" not in err
    assert bytes_of() == before


def test_other_start_of_a_word_is_refused(tune):
    tune("--classes", "cat")
    status, err = tune("--classes", "cat", "--initializer_token=motor")
    assert status == 2
    assert "initializer (there cat, now motor)" in err
    assert tune("--classes", "stop sign", "--initializer_token=motor")[0] == 0
    assert read_header(word("stop_sign"))["initializer"] == "motor"


def test_other_photos_of_a_class_are_refused(tune, photos):
    tune("--classes", "cat", "toy train", "--examples_per_class=9")
    draw_photo(photos / "train" / "cat" / "new.png", (220, 40, 40), 7)
    assert tune("--classes", "toy train", "--examples_per_class=9")[0] == 0
    status, err = tune("--classes", "cat", "--examples_per_class=9")
    assert status == 2
    assert "was made with other settings: photos (there " in err and "--overwrite" in err


def test_interrupted_run_goes_on_where_it_was(tune, monkeypatch):
    tune(name="whole")
    train_class = fine_tune.train_class

    def interrupted(args, pipeline, scheduler, job, *rest):
        if job.class_name == "stop sign":
            raise KeyboardInterrupt
        return train_class(args, pipeline, scheduler, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(fine_tune, "train_class", interrupted)
        status, err = tune()
    assert status == 130
    assert err.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert len(bytes_of()) == 1
    assert tune()[0] == 0
    assert bytes_of() == bytes_of("whole")


def test_overwrite_trains_again(tune):
    tune("--classes", "cat")
    tune("--classes", "cat", "--num_vectors=2", name="other")
    status, _ = tune("--classes", "cat", "--num_vectors=2", "--overwrite")
    assert status == 0
    assert bytes_of() == bytes_of("other")
    assert read_config(trial())["settings"]["num_vectors"] == 2
    before = word().stat().st_mtime_ns
    _, err = tune("--classes", "cat", "--num_vectors=2", "--overwrite")
    assert "finished already" in err and word().stat().st_mtime_ns == before


def test_killed_run_leaves_nothing_behind(tune):
    tune("--classes", "cat")
    left = [
        folder / ".x.safetensors.HOST-999999999.tmp"
        for folder in (trial(), trial() / "stop_sign", trial() / "stop_sign" / "validation")
    ]
    from semantic_aug.experiment import _host

    left = [path.with_name(path.name.replace("HOST", _host())) for path in left]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert tune()[0] == 0
    assert not any(path.exists() for path in left)
    assert not list(Path("output").rglob("*.tmp"))


@pytest.fixture(scope="module")
def broken_model(small_model, tmp_path_factory) -> str:
    """A model with a word, `sign`, whose embedding is not finite."""
    pipeline = StableDiffusionPipeline.from_pretrained(small_model)
    (number,) = pipeline.tokenizer("sign", add_special_tokens=False).input_ids
    with torch.no_grad():
        pipeline.text_encoder.get_input_embeddings().weight[number] = float("nan")
    folder = tmp_path_factory.mktemp("broken") / "model"
    pipeline.save_pretrained(folder)
    return str(folder)


def test_diverging_class_is_left_out_and_named(tune, broken_model):
    status, err = tune(model=broken_model)
    assert status == 1
    assert "seed=0_ex=1/stop_sign: loss is nan at step 1 (learning rate 0.0005, float32); " in err
    assert err.splitlines()[-1] == "not trained: seed=0_ex=1/stop_sign"
    assert sorted(bytes_of()) == [
        f"seed=0_ex=1/{name}/learned_embeds.safetensors" for name in ("cat", "toy_train")
    ]
    assert all(torch.isfinite(rows).all() for rows in read_embeddings(word()).values())


@pytest.mark.parametrize(
    "flag",
    ["--learning_rate=nan", "--learning_rate=-1", "--learning_rate=inf", "--adam_beta1=1",
     "--adam_beta2=-0.1", "--adam_epsilon=nan", "--adam_weight_decay=-1", "--lr_warmup_steps=-1",
     "--max_train_steps=0", "--lr_scheduler=none", "--mixed_precision=fp8", "--repeats=0"],
)  # fmt: skip
def test_impossible_hyperparameters_are_one_line(tune, flag):
    status, err = tune(flag)
    assert status == 2
    assert flag.split("=")[0] in err and err.count("\n") == 1
    assert not Path("output").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_vectors=0"], "--num_vectors: got 0"),
        (["--num_vectors=70"], "--num_vectors: got 70, expected 1 to "),
        (["--initializer_token=stop sign"], "--initializer_token: 'stop sign' is 2 tokens"),
        (["--resolution=30"], "--resolution: got 30, this model needs a multiple of 4"),
        (["--device=cuda:99"], "--device: 'cuda:99' is not there"),
        (["--classes", "dog"], "'dog'"),
        (["--data_dir=absent"], "absent"),
        (["--dataset=absent"], "'absent'"),
        (["--model_path=absent/model"], "cannot get absent/model: "),
        (["--model_path=./absent"], "model folder ./absent does not exist"),
        (["--experiment_name=../e"], "--experiment_name: got '../e'"),
        (["--placeholder_token=<x>"], "names one word, and 3 classes are trained"),
        (["--placeholder_token=<>", "--classes", "cat"], "--placeholder_token: got '<>'"),
        (["--placeholder_token=Stop Sign", "--classes", "cat"], "<stop_sign> is the token of an"),
        (["--placeholder_token=|endoftext|", "--classes", "cat"], "exists already in"),
        (["--shard_index=2", "--num_shards=2"], "--shard_index: got 2"),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(tune, monkeypatch, flags, message):
    monkeypatch.setattr(fine_tune, "load_pipeline", fail)
    status, err = tune(*flags)
    assert status == 2
    assert message in err
    errors = [line for line in err.splitlines() if not line.startswith("fetching ")]
    assert len(errors) == 1 and errors[0].startswith("fine_tune.py: error: ")
    assert not Path("output").exists()


def test_broken_weights_are_one_line(tune, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "text_encoder" / "model.safetensors").write_bytes(b"")
    status, err = tune(model=model)
    assert status == 2
    assert err.startswith(f"fine_tune.py: error: cannot load {model}: ") and err.count("\n") == 1
    assert not Path("output").exists()


def test_xl_model_is_refused(tune, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    (model / "model_index.json").write_text(json.dumps(index))
    status, err = tune(model=model)
    assert status == 2
    assert "is an SDXL, with two text encoders; expected SD 1.x or 2.x" in err


def test_own_token_for_one_class(tune):
    assert tune("--placeholder_token=My Motor", "--classes", "cat", "--num_vectors=2")[0] == 0
    assert list(read_embeddings(word())) == ["<my_motor>"]
    assert read_header(word())["class"] == "cat"
    _, err = tune("--classes", "cat", "--num_vectors=2")
    assert "token (there <my_motor>, now <cat>)" in err
    assert aggregate_embeddings.main(["--experiment_name=e"]) is None
    merged = Path("output/e/fine-tuned-merged/seed=0_ex=1.safetensors")
    assert json.loads(read_header(merged)["classes"]) == {"<my_motor>": "cat"}


def test_epochs_count_photos_times_repeats(tune):
    epochs = [
        "--num_train_epochs=2", "--repeats=5", "--train_batch_size=2",
        "--gradient_accumulation_steps=2", "--examples_per_class=3",
    ]  # fmt: skip
    argv = [flag for flag in epochs if flag]
    status, _ = tune(*argv, "--classes", "cat")
    assert status == 0
    assert read_header(word(examples=3))["steps"] == "2"  # --max_train_steps goes first
    args = fine_tune.parse_args(["--dataset=folder", "--experiment_name=e", *epochs])
    assert fine_tune.steps_of(args, 3) == 2 * 4  # 15 photos in steps of 4


def test_epochs_alone(workdir, photos, small_model, capsys):
    argv = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--report_to=none",
            f"--model_path={small_model}", "--num_train_epochs=3", "--repeats=2",
            "--train_batch_size=2", "--examples_per_class=2", "--classes", "cat"]  # fmt: skip
    assert run(fine_tune.main, argv, capsys)[0] == 0
    assert read_header(word(examples=2))["steps"] == "6"


def test_scaled_learning_rate(tune):
    common = ["--classes", "cat", "--train_batch_size=2", "--gradient_accumulation_steps=2"]
    tune(*common, "--learning_rate=1e-3", "--scale_lr", name="scaled")
    tune(*common, "--learning_rate=4e-3", name="plain")
    rows = [read_embeddings(word(name=name))["<cat>"] for name in ("scaled", "plain")]
    assert torch.equal(*rows)
    assert (
        read_header(word(name="scaled"))["config_id"]
        != read_header(word(name="plain"))["config_id"]
    )


@pytest.mark.parametrize(
    "flag",
    ["--center_crop", "--learnable_property=style", "--learning_rate=1e-3", "--adam_beta1=0.5",
     "--adam_weight_decay=0.5", "--resolution=48", "--lr_scheduler=linear", "--train_batch_size=2",
     "--gradient_accumulation_steps=2", "--crop_to_object", "--adam_epsilon=1e-2",
     "--adam_beta2=0.5"],
)  # fmt: skip
def test_flag_has_an_effect(tune, photos, flag):
    """Each changes the rows and the configuration."""
    masks = ["--dataset_args", f"masks={photos.parent / 'masks'}", "--classes", "cat"]
    tune(*masks, name="plain")
    assert tune(*masks, flag, name="changed")[0] == 0
    rows = [read_embeddings(word(name=name))["<cat>"] for name in ("plain", "changed")]
    assert (rows[0] - rows[1]).abs().max() > 1e-6
    settings = [read_config(trial(name=name))["settings"] for name in ("plain", "changed")]
    differing = [key for key in settings[0] if settings[0][key] != settings[1][key]]
    assert differing == [flag.removeprefix("--").split("=")[0]]


def test_center_crop_takes_the_middle():
    image = Image.new("RGB", (7, 4))
    image.putpixel((1, 0), (255, 0, 0))
    image.putpixel((4, 3), (0, 255, 0))
    square = fine_tune.central_square(image)
    assert square.size == (4, 4)
    assert square.getpixel((0, 0)) == (255, 0, 0) and square.getpixel((3, 3)) == (0, 255, 0)
    assert fine_tune.central_square(Image.new("RGB", (3, 8))).size == (3, 3)


def test_gradient_checkpointing_is_no_setting(tune):
    tune("--classes", "cat", name="plain")
    assert tune("--classes", "cat", "--gradient_checkpointing", name="saving")[0] == 0
    rows = [read_embeddings(word(name=name))["<cat>"] for name in ("plain", "saving")]
    assert torch.allclose(*rows, atol=1e-6)
    configs = [read_config(trial(name=name))["id"] for name in ("plain", "saving")]
    assert configs[0] == configs[1]


def test_earlier_words_are_kept(tune):
    tune("--classes", "cat", "--save_steps=2", "--max_train_steps=5")
    files = sorted(path.name for path in (trial() / "cat").iterdir())
    assert files == [
        "learned_embeds-steps-2.safetensors",
        "learned_embeds-steps-4.safetensors",
        "learned_embeds.safetensors",
    ]
    earlier = trial() / "cat" / files[0]
    assert read_header(earlier)["steps"] == "2" and read_header(word())["steps"] == "5"
    tune("--classes", "cat", "--max_train_steps=2", name="two")
    assert torch.equal(
        read_embeddings(earlier)["<cat>"], read_embeddings(word(name="two"))["<cat>"]
    )


def test_validation_images_show_the_word(tune):
    flags = ["--num_validation_images=2", "--learning_rate=1", "--num_vectors=4"]
    flags += ["--classes", "cat", "toy train"]
    _, err = tune("--validation_prompt=a photo of a *", *flags, name="shown")
    assert "no *" not in err
    images = {}
    for folder in ("cat", "toy_train"):
        paths = sorted((trial(name="shown") / folder / "validation").iterdir())
        assert [path.name for path in paths] == ["000.png", "001.png"]
        images[folder] = [Image.open(path).tobytes() for path in paths]
        assert Image.open(paths[0]).size == (32, 32)
        assert images[folder][0] != images[folder][1]
    _, err = tune("--validation_prompt=a photo of a cat", *flags, "--classes", "cat", name="plain")
    assert "--validation_prompt has no *: its images will not show the learned words" in err
    plain = Image.open(trial(name="plain") / "cat" / "validation" / "000.png").tobytes()
    assert plain != images["cat"][0]  # the word, not its class's name, made the image


def test_losses_go_to_tensorboard(tune):
    tune("--classes", "cat", "toy train", "--report_to=tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in Path("output/e/logs").rglob("events*")}
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == {
        f"{kind}/seed=0_ex=1/{name}" for kind in ("loss", "lr") for name in ("cat", "toy_train")
    }
    assert [event.step for event in events.Scalars("loss/seed=0_ex=1/cat")] == [1, 2]
    assert events.Scalars("lr/seed=0_ex=1/cat")[0].value == pytest.approx(5e-4)
    tune(name="quiet")
    assert not Path("output/quiet/logs").exists()


ODD_CLASSES = ("MOTOR Block", "motor block", "a.b", "Stra\u00dfe \u0130", "hidden..", "<x>")


def test_odd_class_names_stay_inside_and_load_in_stock_diffusers(tune, tmp_path, small_model):
    for number, name in enumerate(ODD_CLASSES):
        draw_photo(tmp_path / "photos" / "train" / name / "0.png", (200, 40, 40), number)
    assert tune("--num_vectors=3")[0] == 0
    files = list(Path("output").rglob("learned_embeds.safetensors"))
    assert len(files) == len(ODD_CLASSES) + len(CLASSES)
    assert {path.parent.parent for path in files} == {trial()}
    by_class = {read_header(path)["class"]: path for path in files}
    assert by_class.keys() == {*ODD_CLASSES, *CLASSES}
    assert aggregate_embeddings.main(["--experiment_name=e"]) is None
    merged = load_file("output/e/fine-tuned-merged/seed=0_ex=1.safetensors")
    assert len(merged) == len(files)

    stock = StableDiffusionPipeline.from_pretrained(small_model)
    for name in ODD_CLASSES:
        tokenizer = copy.deepcopy(stock.tokenizer)
        ((token, rows),) = read_embeddings(by_class[name]).items()
        assert torch.equal(merged[token], rows)
        ids = template_ids(
            tokenizer, ["a photo of a {}"], token, add_tokens(tokenizer, token, 3) and 3
        )
        with torch.no_grad(), rows_in_place(stock.text_encoder, rows, len(stock.tokenizer)):
            expected = stock.text_encoder(ids)[0]
        stock.load_textual_inversion(by_class[name])
        found = stock.encode_prompt(f"a photo of a {token}", "cpu", 1, False)[0]
        assert torch.equal(found, expected)
        stock.unload_textual_inversion()
    stock.load_textual_inversion([{token: rows} for token, rows in merged.items()])
    again = stock.encode_prompt(f"a photo of a {token}", "cpu", 1, False)[0]
    assert torch.equal(again, expected)


# --- the published command -------------------------------------------------------------------

PUBLISHED = """
python fine_tune_upstream.py --dataset=mvip --experiment_name=mvip-test
--pretrained_model_name_or_path="CompVis/stable-diffusion-v1-4" --initializer_token="motor"
--validation_prompt="a photo of a *" --num_vectors=16 --resolution=512 --train_batch_size=16
--lr_warmup_steps=150 --gradient_accumulation_steps=1 --max_train_steps=1000
--learning_rate=5.0e-04 --lr_scheduler="constant_with_warmup" --mixed_precision=fp16
--revision=fp16 --gradient_checkpointing --num_trials=1 --examples_per_class=32
"""


@pytest.fixture(scope="module")
def coarse_model(tmp_path_factory) -> str:
    """A very small model for images of 512 px: latents of 64, as Stable Diffusion has them."""
    parts = build_pipeline().components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts["vae"] = AutoencoderKL(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            mid_block_add_attention=False,
            norm_num_groups=4,
        )
        parts["unet"] = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(8, 8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=4,
        )
    folder = tmp_path_factory.mktemp("coarse") / "model"
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return str(folder)


def test_published_command_is_understood(workdir, coarse_model, monkeypatch, capsys):
    for number in range(2):
        camera = workdir / "photos" / "gear" / "train_data" / "0" / str(number) / "1"
        draw_photo(camera / "a_rgb.png", (90, 90, 200), number)
        mask = workdir / "masks" / (camera / "a_rgb.png").relative_to(workdir / "photos")
        shutil.copy(mask, camera / "a_rgb_mask_gen.png")
    meta = {"super_class": ["CarComponent"], "description": "a gear"}
    (workdir / "photos" / "gear" / "meta.json").write_text(json.dumps(meta))
    monkeypatch.setenv("MVIP_DIR", str(workdir / "photos"))
    command = PUBLISHED.replace("CompVis/stable-diffusion-v1-4", coarse_model)
    command = command.replace("--max_train_steps=1000", "--max_train_steps=2")
    argv = shlex.split(command)[2:]
    status, err = run(fine_tune_upstream.main, [*argv, "--device=cpu"], capsys)
    assert status == 0, err
    assert "no GPU: float32 is used in place of --mixed_precision=fp16" in err
    assert f"{coarse_model} has no fp16 weights: its ordinary ones are used" in err
    ((token, rows),) = read_embeddings(word("gear", name="mvip-test", examples=32)).items()
    assert (token, rows.shape) == ("<gear>", (16, 32))
    header = read_header(word("gear", name="mvip-test", examples=32))
    assert (header["initializer"], header["steps"]) == ("motor", "2")
    settings = read_config(trial(name="mvip-test", examples=32))["settings"]
    for key, value in {
        "dataset": "mvip", "num_vectors": 16, "resolution": 512, "train_batch_size": 16,
        "lr_warmup_steps": 150, "gradient_accumulation_steps": 1, "max_train_steps": 2,
        "learning_rate": 5e-4, "lr_scheduler": "constant_with_warmup",
    }.items():  # fmt: skip
        assert settings[key] == value
    arguments = read_config(trial(name="mvip-test", examples=32))["arguments"]
    assert arguments["gradient_checkpointing"] and arguments["mixed_precision"] == "fp16"
    shown = sorted((trial(name="mvip-test", examples=32) / "gear" / "validation").iterdir())
    assert len(shown) == 4
    assert Image.open(shown[0]).size == (512, 512)


def test_half_precision_falls_back_on_the_cpu(tune):
    tune("--classes", "cat", name="plain")
    for precision in ("fp16", "bf16"):
        flags = ["--classes", "cat", f"--mixed_precision={precision}", "--device=cpu"]
        status, err = tune(*flags, name=precision)
        assert status == 0
        assert f"no GPU: float32 is used in place of --mixed_precision={precision}" in err
        assert bytes_of(precision) == bytes_of("plain")


# --- aggregate_embeddings.py -----------------------------------------------------------------


@pytest.fixture
def merge(workdir, capsys):
    def merge(*flags, name="e"):
        capsys.readouterr()
        try:
            aggregate_embeddings.main([f"--experiment_name={name}", *flags])
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return merge


def learn(class_name="cat", seed=0, examples=1, dim=32, config_id="c0ffee", **header):
    """A word as fine_tune.py writes it."""
    token = f"<{class_name.replace(' ', '_')}>"
    rows = torch.randn(2, dim, generator=stream(stable_hash(class_name, seed)))
    path = word(class_name.replace(" ", "_"), seed=seed, examples=examples)
    write_embeddings(path, {token: rows}, {
        "model": "m", "dataset": "folder", "class": class_name, "config_id": config_id, **header,
    })  # fmt: skip
    return rows


def merged_path(seed=0, examples=1) -> Path:
    return Path(f"output/e/fine-tuned-merged/seed={seed}_ex={examples}.safetensors")


def test_merged_file_of_every_trial(merge):
    rows = {
        (seed, examples, name): learn(name, seed, examples)
        for seed in (2, 3)
        for examples in (1, 4)
        for name in ("cat", "toy train")
    }
    status, out, _ = merge("--seed=2", "--num_trials=2", "--examples_per_class", "1", "4")
    assert status == 0
    assert len(out.splitlines()) == 4
    assert f"{merged_path(2, 1)}: 2 words: <cat> <toy_train>" in out.splitlines()
    for (seed, examples, name), expected in rows.items():
        found = read_embeddings(merged_path(seed, examples))
        assert torch.equal(found[f"<{name.replace(' ', '_')}>"], expected)
    header = read_header(merged_path(3, 4))
    assert (header["seed"], header["examples_per_class"]) == ("3", "4")
    assert (header["model"], header["dataset"]) == ("m", "folder")
    assert json.loads(header["classes"]) == {"<cat>": "cat", "<toy_train>": "toy train"}
    assert len(list(merged_path().parent.iterdir())) == 4


def test_merged_header_holds_the_configuration(tune, merge):
    tune("--classes", "cat")
    status, _, err = merge()
    assert status == 0
    assert "seed=0_ex=1: no word yet for: stop sign, toy train" in err
    config = json.loads(read_header(merged_path())["config"])
    assert {**config, "arguments": ANY} == read_config(trial())
    assert config["settings"]["model"].startswith("sha256:")
    assert config["settings"]["learning_rate"] == 5e-4
    before = merged_path().read_bytes()
    merge()
    assert merged_path().read_bytes() == before
    tune()
    _, out, err = merge()
    assert "3 words" in out and "no word yet" not in err


def test_nothing_found_is_an_error(merge):
    status, out, err = merge()
    assert (status, out) == (2, "")
    assert "there is no experiment output/e; run fine_tune.py first" in err
    learn(seed=1, examples=4)
    status, out, err = merge()
    assert (status, out) == (2, "")
    assert "in output/e/fine-tuned/seed=0_ex=1/*/; trained trials: seed=1_ex=4;" in err
    assert err.count("\n") == 1
    assert not merged_path().parent.exists()


def test_nothing_is_merged_where_one_trial_is_missing(merge):
    learn(seed=0)
    status, _, err = merge("--num_trials=2")
    assert status == 2
    assert "seed=1_ex=1" in err
    assert not merged_path().exists()


def test_only_finished_words_are_merged(merge):
    learn("cat")
    earlier = word().with_name("learned_embeds-steps-2.safetensors")
    shutil.copy(word(), earlier)
    (trial() / "dog").mkdir()
    (trial() / "dog" / ".learned_embeds.safetensors.node-1.tmp").write_text("half")
    _, out, _ = merge()
    assert out == f"{merged_path()}: 1 words: <cat>\n"


def test_predecessor_s_files_are_merged(merge):
    expected = learn("cat")
    for name, rows in (("cat", torch.ones(32)), ("Dog", torch.ones(2, 32))):
        (trial() / name).mkdir(exist_ok=True)
        torch.save({f"<{name}>": rows}, trial() / name / "learned_embeds.bin")
    assert merge()[0] == 0
    found = read_embeddings(merged_path())
    assert found.keys() == {"<cat>", "<dog>"}
    assert torch.equal(found["<cat>"], expected)  # the newer file goes first
    assert torch.equal(found["<dog>"], torch.ones(2, 32))


def test_words_of_different_settings_are_not_merged(merge):
    learn("cat")
    learn("dog", config_id="0ther")
    status, _, err = merge()
    assert status == 2
    assert "were trained with different settings (cat; dog)" in err and "--overwrite" in err
    learn("dog", dim=48)
    status, _, err = merge()
    assert status == 2
    assert "32 in output/e/fine-tuned/seed=0_ex=1/cat/" in err
    assert "48 in output/e/fine-tuned/seed=0_ex=1/dog/" in err
    assert not merged_path().exists()


def test_broken_word_is_named(merge):
    learn("cat")
    learn("dog")
    word("dog").write_bytes(word("dog").read_bytes()[:50])
    status, _, err = merge()
    assert status == 2
    assert str(word("dog")) in err and err.count("\n") == 1


def test_old_merged_file_stays_when_merging_fails(merge):
    learn("cat")
    merge()
    before = merged_path().read_bytes()
    learn("dog", dim=48)
    assert merge()[0] == 2
    assert merged_path().read_bytes() == before
    assert [path.name for path in merged_path().parent.iterdir()] == [merged_path().name]


def test_importing_the_commands_does_nothing():
    for module in (fine_tune, fine_tune_upstream, aggregate_embeddings):
        assert module.__name__ in sys.modules
    assert fine_tune_upstream.main is fine_tune.main
