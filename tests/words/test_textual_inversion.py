"""Learning words: the optimisation, fine_tune.py, and aggregate_embeddings.py."""

import copy
import errno
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest
import torch
from conftest import ROOT, build_pipeline, draw_photo
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

import aggregate_embeddings
import fine_tune
import fine_tune_upstream
import generate_augmentations
from semantic_aug import UserError, stable_hash
from semantic_aug.augmentations.textual_inversion import TextualInversion
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline, load_tokenizer, text_encoders
from semantic_aug.experiment.config import read_config
from semantic_aug.experiment.names import PROCESSES
from semantic_aug.images.reading import image_to_tensor
from semantic_aug.settings import build_all
from semantic_aug.settings.common import Run
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.generation import FITS
from semantic_aug.stages import fine_tune as stage
from semantic_aug.stages.fine_tune import steps_of
from semantic_aug.words import session, training
from semantic_aug.words.embeddings import (
    class_tokens,
    embedding_files,
    read_embeddings,
    read_header,
    read_words,
    token_for,
    write_embeddings,
)
from semantic_aug.words.losses import Draw, denoising_losses, latent_posterior, noise_target
from semantic_aug.words.prompts import (
    Prompts,
    check_num_vectors,
    encode_prompts,
    template_ids,
    tokenise,
)
from semantic_aug.words.rows import (
    add_tokens,
    initial_rows,
    initializer_id,
    rows_in_place,
    words_in_place,
)
from semantic_aug.words.templates import TEMPLATES, load_templates
from semantic_aug.words.training import TrainingSettings, Word, train_words, validation_losses

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


def posteriors_of(vae, photos):
    return tuple(torch.stack(parts) for parts in zip(*(latent_posterior(vae, p) for p in photos)))


def test_posteriors_are_those_of_photos_and_their_mirror_images(pipeline, photos_tensor):
    means, deviations = posteriors_of(pipeline.vae, photos_tensor)
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


def test_posteriors_of_a_vae_whose_latents_are_standardised(photos_tensor):
    vae = build_pipeline().vae
    plain = latent_posterior(vae, photos_tensor[0])
    vae.register_to_config(latents_mean=[0.5, 0.0, 0.0, 1.0], latents_std=[2.0, 1.0, 1.0, 1.0])
    mean, deviation = latent_posterior(vae, photos_tensor[0])
    factor = vae.config.scaling_factor
    assert torch.allclose(mean[:, 0], (plain[0][:, 0] - 0.5 * factor) / 2, atol=1e-6)
    assert torch.allclose(mean[:, 3], plain[0][:, 3] - factor, atol=1e-6)
    assert torch.allclose(deviation[:, 0], plain[1][:, 0] / 2, atol=1e-6)
    assert torch.allclose(deviation[:, 1:], plain[1][:, 1:], atol=1e-6)


def test_vae_that_overflows_in_half_precision_is_used_in_float32(photos_tensor, caplog):
    vae = build_pipeline().vae
    expected = latent_posterior(vae.to(torch.float16).to(torch.float32), photos_tensor[0])
    vae.to(torch.float16)
    vae.register_to_config(force_upcast=True)
    caplog.clear()
    for found, wanted in zip(latent_posterior(vae, photos_tensor[0]), expected):
        assert torch.equal(found, wanted)
    assert vae.dtype == torch.float16
    assert not caplog.messages  # of a change of the type, once for every photo


def test_every_pass_shows_each_photo_once(pipeline, photos_tensor):
    word = word_of(pipeline, photos_tensor[[0, 1, 0, 1, 0]])
    passes = [[word.next_photo() for _ in range(5)] for _ in range(6)]
    assert all(sorted(each) == [0, 1, 2, 3, 4] for each in passes)
    assert len({tuple(each) for each in passes}) > 3


# --- the loop --------------------------------------------------------------------------------

NUM_VECTORS = 3


def scheduler_of(pipeline, **options) -> DDPMScheduler:
    return DDPMScheduler.from_config(pipeline.scheduler.config, **options)


def start_rows(pipeline) -> torch.Tensor:
    table = pipeline.text_encoder.get_input_embeddings().weight
    return initial_rows(table[40], NUM_VECTORS, stream(9))


def word_of(pipeline, photos, seed=0, rows=None, **changes) -> Word:
    """A word at its start."""
    options = {
        "max_train_steps": 2,
        "train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
    }
    return Word(
        [start_rows(pipeline) if rows is None else rows],
        posteriors_of(pipeline.vae, photos),
        TrainingSettings(**options | changes),
        stream(seed),
        scale_loss=pipeline.unet.dtype == torch.float16,
    )


def prompts_of(pipeline, templates=TEMPLATES["object"]) -> Prompts:
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    first_id = add_tokens(tokenizer, "<x>", NUM_VECTORS)[0]
    return Prompts([template_ids(tokenizer, templates, "<x>", NUM_VECTORS)], [first_id])


def train_together(pipeline, words, on_step=lambda word: None, scheduler=None) -> list:
    """The rows of words after training them together."""
    scheduler = scheduler or scheduler_of(pipeline)
    for took_part in train_words(pipeline, scheduler, words, prompts_of(pipeline)):
        for word in took_part:
            on_step(word)
    return [word.trained_rows()[0] for word in words]


def train(pipeline, photos, seed=0, on_step=lambda word: None, scheduler=None, **changes):
    """The rows of one word after training from `start_rows`."""
    word = word_of(pipeline, photos, seed, **changes)
    return train_together(pipeline, [word], on_step, scheduler)[0]


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
    ids = template_ids(tokenizer, ["a photo of a {}"], "<x>", len(rows)).repeat(64, 1)
    means, _ = posteriors_of(pipeline.vae, photos)
    latents = means[:, 0].repeat(32, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=stream(77))
    steps = torch.randint(1000, (64,), generator=stream(78))
    noisy = scheduler.add_noise(latents, noise, steps)
    with torch.no_grad(), rows_in_place(pipeline.text_encoder, rows, first_id):
        predicted = pipeline.unet(noisy, steps, pipeline.text_encoder(ids)[0]).sample
    return float(mse_loss(predicted, noise))


def test_loss_is_taken_where_the_weights_are(pipeline):
    """Twice in the left half and not at all in the right one: as if there were the left alone."""
    scheduler, prompts, rows = scheduler_of(pipeline), prompts_of(pipeline), start_rows(pipeline)
    latents, noise = torch.randn(2, 3, 4, 16, 16, generator=stream(4))
    steps = torch.tensor([50, 500, 950])
    ids = prompts.of_words(NUM_VECTORS, [1])[0].repeat(3, 1)
    with torch.no_grad(), rows_in_place(pipeline.text_encoder, rows, prompts.first_ids[0]):
        hidden = pipeline.text_encoder(ids)[0]
        predicted = pipeline.unet(scheduler.add_noise(latents, noise, steps), steps, hidden).sample
    left = torch.zeros(3, 1, 16, 16)
    left[..., :8] = 2
    expected = {
        "whole": (torch.ones(3, 1, 16, 16), mse_loss(predicted, noise)),
        "left": (left, mse_loss(predicted[..., :8], noise[..., :8])),
    }
    for weights, loss in expected.values():
        draws = [Draw(latents, weights, noise, steps, template=1)]
        with torch.no_grad():
            (found,) = denoising_losses(pipeline, scheduler, [[rows]], draws, prompts)
        assert found == pytest.approx(float(loss), rel=1e-4)
    assert abs(expected["whole"][1] - expected["left"][1]) > 1e-3


def test_weights_go_with_their_photo_and_its_mirror_image(pipeline, photos_tensor):
    posteriors = posteriors_of(pipeline.vae, photos_tensor)
    means = torch.arange(4.0).view(2, 2, 1, 1, 1).expand_as(posteriors[0])
    options = word_of(pipeline, photos_tensor, train_batch_size=6).settings
    weights = 1 + means[:, :, :1]
    word = Word([start_rows(pipeline)], (means, 0 * means), options, stream(0), weights=weights)
    draw = word.draw(1, 1000)
    assert torch.equal(draw.weights, 1 + draw.latents[:, :1])
    assert len(draw.weights[:, 0, 0, 0].unique()) > 2
    assert (word_of(pipeline, photos_tensor).draw(1, 1000).weights == 1).all()


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
        on_step=lambda word: losses.append((word.step, word.loss)),
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
        lr_warmup_steps=2, on_step=lambda word: seen.append(word.rate),
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
            ), on_step=lambda word, kind=kind: losses.setdefault(kind, word.loss),
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
    # Directions, since Adam's first steps go by a gradient's sign, also where it is all rounding.
    way, expected_way = rows - start_rows(pipeline), expected - start_rows(pipeline)
    assert torch.cosine_similarity(way.flatten(), expected_way.flatten(), dim=0) > 0.98
    assert (way.abs().mean(dim=1) > 5e-3).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverging_word_stops_and_the_others_go_on(pipeline, photos_tensor, value):
    good = [word_of(pipeline, photos_tensor, seed, max_train_steps=4) for seed in (0, 1)]
    rows = torch.full((NUM_VECTORS, 32), value)
    bad = word_of(pipeline, photos_tensor, 2, rows, max_train_steps=4)
    sizes = []
    for took_part in train_words(
        pipeline, scheduler_of(pipeline), [good[0], bad, good[1]], prompts_of(pipeline)
    ):
        sizes.append(len(took_part))
    assert sizes == [3, 2, 2, 2]
    assert bad.diverged.startswith("loss is ") and "at step 1 (learning rate 0.01)" in bad.diverged
    assert (bad.step, bad.is_running, bad.is_done) == (0, False, False)
    for seed, word in enumerate(good):
        assert word.is_done and word.diverged is None
        alone = train(pipeline, photos_tensor, seed, max_train_steps=4)
        assert torch.allclose(word.trained_rows()[0], alone, atol=1e-5)


def test_a_last_step_that_breaks_the_rows_is_noticed(pipeline, photos_tensor):
    word = word_of(pipeline, photos_tensor, max_train_steps=1, learning_rate=float("inf"))
    train_together(pipeline, [word])
    assert word.diverged == "rows are not finite after step 1"


# --- several words at once -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_words_of_one_batch_come_out_as_if_alone(pipeline, photos_tensor, count):
    """AdamW moves by about the sign of a gradient, which rounding may turn where it is tiny."""
    photos = [photos_tensor * (0.5 + 0.1 * n) for n in range(count)]
    table = pipeline.text_encoder.get_input_embeddings().weight
    starts = [initial_rows(table[40 + n], NUM_VECTORS, stream(n)) for n in range(count)]
    changes = {"max_train_steps": 6, "train_batch_size": 2, "learning_rate": 1e-3}

    def word(n):
        return word_of(pipeline, photos[n], n, starts[n], **changes)

    together = train_together(pipeline, [word(n) for n in range(count)])
    for n, rows in enumerate(together):
        (alone,) = train_together(pipeline, [word(n)])
        assert torch.allclose(rows, alone, atol=2e-5)
        assert (rows - starts[n]).abs().mean() > 1e-3
    assert len({rows.numpy().tobytes() for rows in together}) == count


def test_each_word_has_its_own_end(pipeline, photos_tensor):
    words = [word_of(pipeline, photos_tensor, n, max_train_steps=n + 1) for n in range(3)]
    sizes = [
        len(took_part)
        for took_part in train_words(pipeline, scheduler_of(pipeline), words, prompts_of(pipeline))
    ]
    assert sizes == [3, 2, 1]
    assert [word.step for word in words] == [1, 2, 3]
    alone = train(pipeline, photos_tensor, 2, max_train_steps=3)
    assert torch.allclose(words[2].trained_rows()[0], alone, atol=1e-5)


def test_overflowing_word_skips_its_own_step_alone(small_model, photos_tensor):
    half = load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float16)
    changes = {"max_train_steps": 3, "train_batch_size": 1}
    words = [word_of(half, photos_tensor, n, **changes) for n in range(3)]
    words[1].scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    rows = train_together(half, words)
    assert torch.equal(rows[1], start_rows(half))  # three overflows, a half of the scale each
    assert words[1].scaler.get_scale() == 2.0**37
    assert words[1].step == 3 and words[1].diverged is None
    for n in (0, 2):
        alone = train(half, photos_tensor, n, **changes)
        assert torch.allclose(rows[n], alone, atol=5e-3)
        assert ((rows[n] - start_rows(half)).abs().mean(dim=1) > 5e-3).all()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("stop", [1, 3])
def test_state_goes_on_bit_for_bit(pipeline, photos_tensor, tmp_path, schedule, stop):
    options = {"max_train_steps": 5, "lr_scheduler": schedule, "lr_warmup_steps": 2}
    photos = photos_tensor[[0, 1, 0]]  # batches of two: the order is cut in the middle of a pass

    def words():
        return [word_of(pipeline, photos, n, **options) for n in range(2)]

    whole = train_together(pipeline, words())
    before, after = words(), words()
    for _, _ in zip(
        range(stop), train_words(pipeline, scheduler_of(pipeline), before, prompts_of(pipeline))
    ):
        pass
    for number, (old, new) in enumerate(zip(before, after)):
        torch.save(old.state_dict(), tmp_path / str(number))
        new.load_state_dict(torch.load(tmp_path / str(number), weights_only=True))
        assert new.step == stop
    for found, expected in zip(train_together(pipeline, after), whole):
        assert torch.equal(found, expected)


def test_loss_scale_is_part_of_the_state(small_model, photos_tensor):
    half = load_pipeline(inspect_model(small_model), torch.device("cpu"), torch.float16)
    old, new = (word_of(half, photos_tensor) for _ in range(2))
    old.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    train_together(half, [old])
    new.load_state_dict(old.state_dict())
    assert new.scaler.get_scale() == old.scaler.get_scale() == 2.0**38


def test_validation_loss_depends_on_rows_and_nothing_else(
    pipeline, photos_tensor, short_validation
):
    words = [word_of(pipeline, photos_tensor, n, max_train_steps=4) for n in range(2)]
    scheduler, prompts = scheduler_of(pipeline), prompts_of(pipeline)

    def losses(words, seeds=(5, 6)):
        return validation_losses(
            pipeline, scheduler, words, [stream(seed) for seed in seeds], prompts
        )

    before = losses(words)
    assert losses(words) == before  # no chance of the training's is used up
    assert losses(words[1:], seeds=(6,)) == pytest.approx(before[1:], abs=1e-5)
    train_together(pipeline, words)
    after = losses(words)
    assert all(abs(x - y) > 1e-5 for x, y in zip(before, after))
    assert losses(words) == after
    assert torch.equal(
        words[0].trained_rows()[0], train_together(pipeline, [
            word_of(pipeline, photos_tensor, n, max_train_steps=4) for n in range(2)
        ])[0]
    )  # fmt: skip


# --- fine_tune.py ----------------------------------------------------------------------------


@pytest.fixture
def tune(workdir, photos, small_model, capsys, short_validation):
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

    monkeypatch.setattr(stage, "load_pipeline", count)
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


def test_equal_runs_give_equal_bytes_whatever_is_watched(tune, monkeypatch):
    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 2)
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
    tune("--classes", "toy train", name="one")
    (found,), (wanted,) = (
        read_embeddings(word("toy_train", name=name)).values() for name in ("one", "e")
    )
    assert torch.allclose(found, wanted, atol=1e-5)  # in other company


def test_shards_take_whole_groups(tune):
    """Six words in groups of two: whoever trains them, in whatever order, the bits are the same."""
    flags = ["--num_trials=2", "--classes_per_step=2"]
    assert tune(*flags)[0] == 0
    expected = bytes_of()
    assert len(expected) == 6
    made = []
    for index in (1, 0):
        tune(*flags, "--shard_index", index, "--num_shards=2", name="shards")
        made.append(len(bytes_of("shards")))
    assert made == [2, 6]
    assert bytes_of("shards") == expected
    _, err = tune(*flags, "--shard_index=3", "--num_shards=4", name="many")
    assert "6 classes in groups of 2 keep 3 of 4 processes busy; --classes_per_step 1" in err
    assert "nothing left to do for shard 3 of 4" in err
    assert not Path("output/many").exists()


def test_groups_change_nothing_but_rounding(tune):
    for size in (1, 3):
        assert tune("--classes_per_step", size, "--num_vectors=2", name=f"by{size}")[0] == 0
    for folder in FOLDERS:
        one, three = (
            next(iter(read_embeddings(word(folder, name=f"by{size}")).values())) for size in (1, 3)
        )
        assert torch.allclose(one, three, atol=1e-5)
    configs = {read_config(trial(name=f"by{size}"))["id"] for size in (1, 3)}
    assert len(configs) == 1


def test_finished_words_are_skipped(tune, monkeypatch):
    tune("--classes", "cat", "toy train")
    before = {path: path.stat().st_mtime_ns for path in (word(), word("toy_train"))}
    status, err = tune()
    assert status == 0
    assert "2 words finished already: skipped" in err.splitlines()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert word("stop_sign").exists()
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, err = tune("--device=cpu", "--shard_index=1", "--num_shards=3")
    assert (status, err.splitlines()[-1]) == (0, "nothing left to do for shard 1 of 3")


def test_other_settings_are_refused_by_name(tune, monkeypatch):
    tune("--classes", "cat")
    before = bytes_of()
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, err = tune("--num_vectors=2", "--learning_rate=0.001", "--center_crop")
    assert status == 2
    assert err.count("\n") == 1 and err.startswith("fine_tune.py: error: ")
    for text in (
        "--num_vectors: there 1, now 2;", "--learning_rate: there 0.0005, now 0.001;",
        "--center_crop: there false, now true;", "--overwrite",
    ):  # fmt: skip
        assert text in err
    assert "train_batch_size" not in err
    assert bytes_of() == before


def test_other_start_of_a_word_is_refused(tune):
    tune("--classes", "cat")
    status, err = tune("--classes", "cat", "--initializer_token=motor")
    assert status == 2
    assert "initializer: there cat, now motor" in err
    assert tune("--classes", "stop sign", "--initializer_token=motor")[0] == 0
    assert read_header(word("stop_sign"))["initializer"] == "motor"


def test_other_photos_of_a_class_are_refused(tune, photos):
    tune("--classes", "cat", "toy train", "--examples_per_class=9")
    draw_photo(photos / "train" / "cat" / "new.png", (220, 40, 40), 7)
    assert tune("--classes", "toy train", "--examples_per_class=9")[0] == 0
    status, err = tune("--classes", "cat", "--examples_per_class=9")
    assert status == 2
    assert "was made with other settings: photos: there " in err and "--overwrite" in err


WRITES_OF_A_RUN = 20  # config.json, five checkpoints of three words, the words, timing.json
QUICK_MOMENTS = (0, 5, 17, 19, WRITES_OF_A_RUN)  # each kind of file, and none
SLOW_MOMENTS = (2, 9, 12, 15, 16, 18)


@pytest.mark.parametrize(
    "moment", [*QUICK_MOMENTS, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW_MOMENTS)]
)
def test_interrupted_run_goes_on_where_it_was(tune, monkeypatch, moment):
    """Whichever file was being written: the rerun ends with the same bytes and leaves no other."""
    flags = ["--max_train_steps=5", "--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    writes, replace = [], os.replace

    def interrupting(*args):
        if PROCESSES not in Path(args[1]).parts:  # those are written by the clock as well
            writes.append(args)
            if len(writes) == moment + 1:
                raise KeyboardInterrupt
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupting)
        status, err = tune(*flags)
    if moment == WRITES_OF_A_RUN:
        assert (status, len(writes)) == (0, WRITES_OF_A_RUN)  # so the moments above are all
    else:
        assert status == 130
        assert err.splitlines()[-1] == "interrupted; the same command goes on from what is written"
    monkeypatch.setattr(stage, "load_pipeline", load_pipeline)
    assert tune(*flags)[0] == 0
    assert bytes_of() == whole_run(tune)
    left = [path for path in Path("output/e").rglob("*") if "checkpoint" in path.name]
    assert left == []


whole = {}


def whole_run(tune) -> dict[str, bytes]:
    """The words of an uninterrupted run, trained once for all tests."""
    if not whole:
        assert tune("--max_train_steps=5", name="whole")[0] == 0
        whole.update(bytes_of("whole"))
    return whole


def stop_after(monkeypatch, step: int):
    """Interrupt the training once that many steps are done."""

    def stopping(*args):
        for took_part in training.train_words(*args):
            yield took_part
            if took_part[0].step == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(session, "train_words", stopping)


def test_checkpoints_are_kept_as_told_and_gone_on_from(tune, monkeypatch):
    flags = ["--max_train_steps=5", "--checkpointing_steps=1", "--checkpoints_total_limit=3"]
    with monkeypatch.context() as patch:
        stop_after(patch, 5 - 1)
        assert tune(*flags)[0] == 130
    names = sorted(path.name for path in (trial() / "cat").iterdir())
    assert names == ["checkpoint-2.pt", "checkpoint-3.pt", "checkpoint-4.pt"]
    (trial() / "toy_train" / "checkpoint-4.pt").unlink()  # as if killed before this was written
    _, err = tune(*flags)
    assert "seed=0_ex=1/cat: goes on from step 3 of 5" in err.splitlines()
    assert bytes_of() == whole_run(tune)


def test_words_that_share_no_checkpoint_go_on_apart(tune, monkeypatch):
    flags = ["--max_train_steps=5", "--checkpointing_steps=2", "--checkpoints_total_limit=1"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        tune(*flags)
    for path in (trial() / "cat").iterdir():
        path.unlink()
    status, err = tune(*flags)
    assert status == 0
    assert "stop_sign: goes on from step 4 of 5" in err and "cat: goes on" not in err
    tune("--max_train_steps=5", name="other")
    for folder in FOLDERS:
        rows = [next(iter(read_embeddings(word(folder, name=n)).values())) for n in ("e", "other")]
        assert torch.allclose(*rows, atol=1e-5)


def test_one_checkpoint_by_its_path(tune, monkeypatch, tmp_path):
    flags = ["--max_train_steps=5", "--checkpointing_steps=1", "--checkpoints_total_limit=9"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        tune(*flags)
    kept = tmp_path / "kept.pt"
    shutil.copy(trial() / "cat" / "checkpoint-2.pt", kept)
    _, err = tune(*flags, f"--resume_from_checkpoint={kept}")
    assert "seed=0_ex=1/cat: goes on from step 2 of 5" in err
    assert "seed=0_ex=1/toy_train: goes on from step 2 of 5" in err  # where all meet
    expected = whole_run(tune)
    for folder in FOLDERS:
        name = f"seed=0_ex=1/{folder}/learned_embeds.safetensors"
        Path("expected.safetensors").write_bytes(expected[name])
        (wanted,) = read_embeddings("expected.safetensors").values()
        (found,) = read_embeddings(word(folder)).values()
        assert torch.allclose(found, wanted, atol=1e-5)
    monkeypatch.setattr(stage, "load_pipeline", fail)
    for path, message in (
        (tmp_path / "absent.pt", f"there is no checkpoint file {tmp_path / 'absent.pt'}"),
        (word(), f"cannot read checkpoint {word()}: it is damaged"),
    ):
        status, err = tune(*flags, f"--resume_from_checkpoint={path}", name="new")
        assert (status, err.count("\n")) == (2, 1) and message in err
    status, err = tune(*flags, f"--resume_from_checkpoint={kept}", "--seed=5", name="new")
    assert status == 2
    assert f"{kept} is of class 'cat' with seed 0 and 1 examples per class, which this" in err


def test_checkpoint_of_other_settings_is_refused_by_name(tune, monkeypatch, tmp_path):
    flags = ["--max_train_steps=3", "--checkpointing_steps=1", "--classes", "cat"]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        tune(*flags)
    kept = tmp_path / "kept.pt"
    shutil.copy(trial() / "cat" / "checkpoint-2.pt", kept)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "load_pipeline", fail)
        status, err = tune(*flags, "--learning_rate=0.1")
        assert status == 2 and "--learning_rate: there 0.0005, now 0.1;" in err
        status, err = tune(*flags, "--initializer_token=motor")
        assert status == 2 and "initializer: there cat, now motor" in err
        resume = f"--resume_from_checkpoint={kept}"
        status, err = tune(*flags, resume, "--num_vectors=2", name="new")
        assert status == 2 and err.count("\n") == 1
        assert "kept.pt was made with other settings: --num_vectors: there 1, now 2;" in err
    assert tune(*flags, "--learning_rate=0.1", "--overwrite")[0] == 0
    tune(*flags, "--learning_rate=0.1", name="fresh")
    assert bytes_of() == bytes_of("fresh")


def test_full_disk_during_a_checkpoint_keeps_the_one_before(tune, monkeypatch):
    flags = ["--max_train_steps=5", "--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    write = Path.write_bytes

    def full(path, data):
        if "checkpoint-3" in path.name and "toy_train" in str(path):
            write(path, data[:50])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        status, err = tune(*flags)
    assert status == 2
    last = err.splitlines()[-1]
    assert "No space left on device; make room and run the same command again" in last
    assert not list(Path("output").rglob("*.tmp"))
    assert (trial() / "toy_train" / "checkpoint-2.pt").exists()
    _, err = tune(*flags)
    assert "toy_train: goes on from step 2 of 5" in err
    assert bytes_of() == whole_run(tune)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_damaged_checkpoint_is_left_out_for_an_earlier_one(tune, monkeypatch, damage):
    flags = ["--max_train_steps=5", "--checkpointing_steps=1", "--checkpoints_total_limit=2"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        tune(*flags)
    path = trial() / "cat" / "checkpoint-4.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-100], "bit": data, "empty": b""}[damage])
    status, err = tune(*flags)
    assert status == 0
    assert f"cannot read checkpoint {path}: it is damaged" in err
    assert "seed=0_ex=1/cat: goes on from step 3 of 5" in err
    assert bytes_of() == whole_run(tune)


def test_sentence_without_room_for_a_word(tune, tmp_path):
    (tmp_path / "long.txt").write_text("a photo of " * 40 + "{}")
    status, err = tune(f"--templates={tmp_path / 'long.txt'}")
    assert (status, err.count("\n")) == (2, 1)
    assert "--templates: no room for a word in 'a photo of a photo" in err


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [1, 3, 6])
def test_killed_process_goes_on(tune, workdir, photos, small_model, wanted):
    """`kill -9` while checkpoints are being written, at three moments."""
    flags = ["--max_train_steps=40", "--checkpointing_steps=1", "--checkpoints_total_limit=1"]
    argv = [
        sys.executable, str(ROOT / "fine_tune.py"), "--dataset=folder", f"--data_dir={photos}",
        "--experiment_name=e", f"--model_path={small_model}", "--train_batch_size=1",
        "--report_to=none", *flags,
    ]  # fmt: skip
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: more give other last bits
    process = subprocess.Popen(argv, cwd=workdir, env=one_thread, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        steps = [int(p.stem.split("-")[1]) for p in Path("output").rglob("checkpoint-*.pt")]
        if max(steps, default=0) >= wanted:
            break
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9  # it was still at work
    status, err = tune(*flags)
    assert status == 0
    if wanted > 1:  # while the first are being written, not every word has one yet
        assert "goes on from step" in err
    tune("--max_train_steps=40", name="whole")
    assert bytes_of() == bytes_of("whole")
    assert not list(Path("output/e").rglob("*.tmp")) and not list(Path("output/e").rglob("*.pt"))


def test_overwrite_trains_again(tune):
    tune("--classes", "cat")
    tune("--classes", "cat", "--num_vectors=2", name="other")
    status, _ = tune("--classes", "cat", "--num_vectors=2", "--overwrite")
    assert status == 0
    assert bytes_of() == bytes_of("other")
    assert read_config(trial())["settings"]["num_vectors"] == 2
    before = word().stat().st_mtime_ns
    status, err = tune("--classes", "cat", "--num_vectors=2", "--overwrite")
    assert (status, err) == (0, "") and word().stat().st_mtime_ns == before


def test_killed_run_leaves_nothing_behind(tune):
    tune("--classes", "cat")
    left = [
        folder / ".x.safetensors.HOST-999999999.tmp"
        for folder in (trial(), trial() / "stop_sign", trial() / "stop_sign" / "validation")
    ]
    from semantic_aug.experiment.files import hostname

    left = [path.with_name(path.name.replace("HOST", hostname())) for path in left]
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
    line = "seed=0_ex=1/stop_sign: loss is nan at step 1 (learning rate 0.0005) in float32; "
    assert line in err
    assert err.splitlines()[-1] == "not trained: seed=0_ex=1/stop_sign"
    assert sorted(bytes_of()) == [
        f"seed=0_ex=1/{name}/learned_embeds.safetensors" for name in ("cat", "toy_train")
    ]
    assert all(torch.isfinite(rows).all() for rows in read_embeddings(word()).values())


@pytest.mark.parametrize(
    "flag",
    ["--learning_rate=nan", "--learning_rate=-1", "--learning_rate=inf", "--learning_rate=0",
     "--adam_beta1=1", "--adam_beta2=-0.1", "--adam_epsilon=nan", "--adam_weight_decay=-1",
     "--lr_warmup_steps=-1", "--max_train_steps=0", "--lr_scheduler=none",
     "--mixed_precision=fp8", "--repeats=0"],
)  # fmt: skip
def test_impossible_hyperparameters_are_one_line(tune, flag):
    status, err = tune(flag)
    assert status == 2
    assert flag.split("=")[0] in err and err.count("\n") == 1
    assert not Path("output").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--num_vectors=0"], "--num_vectors: expected a whole number from 1, got '0'"),
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
        (["--center_crop", "--fit=pad"], "--center_crop means --fit crop, and --fit pad is given"),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(tune, monkeypatch, flags, message):
    monkeypatch.setattr(stage, "load_pipeline", fail)
    monkeypatch.setattr(sys, "argv", ["fine_tune.py"])  # what a parser calls itself
    status, err = tune(*flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1 and err.startswith("fine_tune.py: error: ")
    assert not Path("output").exists()


def test_broken_weights_are_one_line(tune, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    (model / "text_encoder" / "model.safetensors").write_bytes(b"")
    status, err = tune(model=model)
    assert status == 2
    assert err.startswith(f"fine_tune.py: error: cannot load {model}: ") and err.count("\n") == 1
    assert not Path("output").exists()


def test_diverging_class_keeps_its_last_checkpoint(tune, monkeypatch):

    def breaking(*args):
        for took_part in training.train_words(*args):
            yield took_part
            if len(took_part) == 3 and took_part[1].step == 2:
                with torch.no_grad():
                    took_part[1].rows[0].fill_(math.nan)

    flags = ["--max_train_steps=5", "--checkpointing_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(session, "train_words", breaking)
        status, err = tune(*flags)
    assert status == 1
    assert "loss is nan at step 3 (learning rate 0.0005) in float32; this class is left out, the "
    assert "the checkpoint of step 2 is kept; try a lower --learning_rate" in err
    assert len(bytes_of()) == 2
    assert [path.name for path in sorted((trial() / "stop_sign").iterdir())] == [
        "checkpoint-1.pt", "checkpoint-2.pt",
    ]  # fmt: skip
    _, err = tune(*flags)
    assert "stop_sign: goes on from step 2 of 5" in err
    (found,) = read_embeddings(word("stop_sign")).values()
    assert found.isfinite().all()


# --- every Stable Diffusion ------------------------------------------------------------------


def test_model_of_velocity(tune, velocity_model):
    assert tune("--classes", "cat", model=velocity_model)[0] == 0
    ((_, rows),) = read_embeddings(word()).items()
    assert rows.shape == (1, 48)


def test_xl_learns_rows_of_both_text_encoders(tune, xl_model, photos, capsys, monkeypatch):
    """They are loaded by stock diffusers, and the project's own augmentation sees the same."""
    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 2)
    status, err = tune(
        "--num_vectors=2", "--learning_rate=0.1", "--validation_prompt=a photo of a *",
        "--num_validation_images=1", model=xl_model,
    )  # fmt: skip
    assert status == 0, err
    assert Image.open(next((trial() / "cat" / "validation").iterdir())).size == (32, 32)
    first, second = (
        read_embeddings(trial() / "stop_sign" / name)["<stop_sign>"]
        for name in ("learned_embeds.safetensors", "learned_embeds_2.safetensors")
    )
    assert (first.shape, second.shape) == ((2, 32), (2, 48))
    stock = StableDiffusionXLPipeline.from_pretrained(xl_model)
    (start,) = stock.tokenizer("sign", add_special_tokens=False).input_ids
    for rows, encoder in ((first, stock.text_encoder), (second, stock.text_encoder_2)):
        moved = (rows - encoder.get_input_embeddings().weight[start]).abs().mean(dim=1)
        assert (moved > 0.05).all()  # both learn

    assert aggregate_embeddings.main(["--experiment_name=e"]) is None
    merged = Path("output/e/fine-tuned-merged/seed=0_ex=1.safetensors")
    words = read_words(merged, 2)
    assert torch.equal(words[0]["<stop_sign>"], first)
    assert torch.equal(words[1]["<stop_sign>"], second)
    for rows, tokenizer, encoder in (
        (words[0], stock.tokenizer, stock.text_encoder),
        (words[1], stock.tokenizer_2, stock.text_encoder_2),
    ):
        stock.load_textual_inversion(
            [{token: each} for token, each in rows.items()],
            tokenizer=tokenizer, text_encoder=encoder,
        )  # fmt: skip
    expected = stock.encode_prompt("a photo of a <stop_sign>")
    own = load_pipeline(inspect_model(xl_model), torch.device("cpu"), torch.float32)
    aug = TextualInversion(merged, own, strength=0.5, num_inference_steps=2)
    found = aug.edit.pipeline.encode_prompt("a photo of a <stop_sign>")
    for x, y in zip(found, expected):
        assert torch.allclose(x, y, atol=1e-5)
    plain = own.encode_prompt("a photo of a <stop_sign>")
    assert not torch.equal(plain[0], expected[0]) and not torch.equal(plain[2], expected[2])

    argv = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--num_synthetic=1",
            f"--model_path={xl_model}", "--num_inference_steps=2"]  # fmt: skip
    assert run(generate_augmentations.main, argv, capsys)[0] == 0
    images = Path("output/e/aug/seed=0_ex=1")
    before = {path.name: path.read_bytes() for path in images.glob("*.png")}
    assert len(before) == 3
    second = embedding_files(merged)[1]
    rows = read_embeddings(second)
    write_embeddings(second, rows | {"<cat>": rows["<cat>"] + 1}, read_header(second))
    status, err = run(generate_augmentations.main, argv, capsys)
    assert status == 2 and "made with other words" in err and "cat" in err
    second.unlink()
    status, err = run(generate_augmentations.main, argv, capsys)
    assert (status, err.count("\n")) == (2, 2) and f"{second} does not exist" in err


@pytest.mark.parametrize("end_of_text", [None, 2])
def test_training_sees_the_prompts_as_the_pipeline_does(xl_model, tmp_path, end_of_text):
    """The conditions of training are those of stock inference, for both kinds of model.

    The pooled state comes from the end of the text, though the words have higher ids. Where the
    configuration gives 2 for its id, as SDXL's does, stock inference takes it from the highest id,
    the word's last vector, and so must training.
    """
    model = shutil.copytree(xl_model, tmp_path / "model")
    if end_of_text is not None:
        for file in model.glob("text_encoder*/config.json"):
            config = json.loads(file.read_text()) | {"eos_token_id": end_of_text}
            file.write_text(json.dumps(config))
    pipeline = StableDiffusionXLPipeline.from_pretrained(model)
    rows = [torch.randn(2, 32, generator=stream(1)), torch.randn(2, 48, generator=stream(2))]
    pairs = text_encoders(pipeline)
    for (tokenizer, encoder), each in zip(pairs, rows):
        pipeline.load_textual_inversion([{"<y>": each}], tokenizer=tokenizer, text_encoder=encoder)
    expected = pipeline.encode_prompt("a <y> photo", do_classifier_free_guidance=False)
    tokenizer, encoder = pairs[1]
    ids = tokenizer("a <y> <y>_1 photo", padding="max_length", return_tensors="pt").input_ids
    at = "<|endoftext|>" if end_of_text is None else "<y>_1"
    place = ids[0].tolist().index(tokenizer.convert_tokens_to_ids(at))
    with torch.no_grad():
        states = encoder(ids).last_hidden_state
        pooled = encoder.text_projection(states[:, place])
    assert torch.allclose(pooled, expected[2], atol=1e-5)
    # Read as stock inference reads: where weights lie in memory decides about the last bits.
    load = load_pipeline.__wrapped__
    fresh = load(inspect_model(str(model)), torch.device("cpu"), torch.float32)
    prompts = tokenise(fresh, ["a {} photo"], "<x>", 2)
    other = [torch.zeros_like(each) for each in rows]
    for number, words in enumerate(([rows, other], [other, rows])):
        ids = [each[[number]] for each in prompts.of_words(2, [0, 0])]
        with torch.no_grad(), words_in_place(fresh, words, prompts.first_ids):
            hidden, added = encode_prompts(fresh, ids, (16, 16))
        assert torch.equal(hidden, expected[0])
        assert torch.equal(added["text_embeds"], expected[2])
        assert added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]


def test_word_without_its_second_file_is_not_merged(tune, xl_model, merge):
    tune(model=xl_model)
    missing = trial() / "cat" / "learned_embeds_2.safetensors"
    missing.unlink()
    status, _, err = merge()
    assert (status, err.count("\n")) == (2, 1)
    assert f"{missing} is missing, but other classes have such a file" in err


# --- sentences -------------------------------------------------------------------------------


def test_sentences_for_machine_parts_and_of_a_file(tune, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("\ufeffa weld of the {} kind\n\n  the {} {{seam}}  \n", encoding="utf-8")
    assert load_templates(str(own)) == ("a weld of the {} kind", "the {} {{seam}}")
    flags = ["--classes", "cat"]
    tune(*flags, name="plain")
    for name in ("mvip", "object", str(own)):
        experiment = Path(name).stem
        assert tune(*flags, f"--templates={name}", name=experiment)[0] == 0
    rows = {n: word(name=n).read_bytes() for n in ("plain", "object", "mvip", "own")}
    assert rows["plain"] == rows["object"]
    assert len(set(rows.values())) == 3
    kept = read_config(trial(name="own"))["settings"]["templates"]
    assert kept == ["a weld of the {} kind", "the {} {{seam}}"]
    assert read_config(trial(name="mvip"))["settings"]["templates"] == "mvip"


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "expected object, style, mvip or a text file of one sentence per line (No such"),
        ("", "own.txt is empty"),
        ("a {}\nno word\n", "line 2 of own.txt is 'no word', expected a sentence that holds {} on"),
        ("a {} and a {}", "line 1 of own.txt"),
        (b"\xff\xfe{}", "it is not UTF-8 text"),
    ],
)
def test_sentences_that_cannot_be_used(tune, workdir, content, message):
    if content is not None:
        Path("own.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    status, err = tune("--templates=own.txt")
    assert (status, err.count("\n")) == (2, 1)
    assert message in err and "--templates" in err


def test_own_token_for_one_class(tune):
    assert tune("--placeholder_token=My Motor", "--classes", "cat", "--num_vectors=2")[0] == 0
    assert list(read_embeddings(word())) == ["<my_motor>"]
    assert read_header(word())["class"] == "cat"
    _, err = tune("--classes", "cat", "--num_vectors=2")
    assert "token: there <my_motor>, now <cat>;" in err
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
    assert read_header(word(examples=3))["steps"] == "2"  # --max_train_steps takes precedence
    args = vars(fine_tune.parse_args(["--dataset=folder", "--experiment_name=e", *epochs]))
    _, settings = build_all(args, Run, FineTuning)
    assert steps_of(settings, 3) == 2 * 4  # 15 photos in steps of 4


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


FLAGS_OF_TRAINING = (
    "--center_crop", "--fit=pad", "--learnable_property=style", "--learning_rate=1e-3",
    "--adam_beta1=0.5", "--adam_weight_decay=0.5", "--resolution=48", "--lr_scheduler=linear",
    "--train_batch_size=2", "--gradient_accumulation_steps=2", "--crop_to_object",
    "--adam_epsilon=1e-2", "--adam_beta2=0.5",
)  # fmt: skip


def test_flags_have_an_effect(tune, photos):
    """Each changes the rows and the configuration."""
    masks = ["--dataset_args", f"masks={photos.parent / 'masks'}", "--classes", "cat"]
    tune(*masks, name="plain")
    for flag in FLAGS_OF_TRAINING:
        changed = flag.removeprefix("--")
        assert tune(*masks, flag, name=changed)[0] == 0, flag
        rows = [read_embeddings(word(name=name))["<cat>"] for name in ("plain", changed)]
        assert (rows[0] - rows[1]).abs().max() > 1e-6, flag
        settings = [read_config(trial(name=name))["settings"] for name in ("plain", changed)]
        differing = [key for key in settings[1] if settings[0].get(key) != settings[1][key]]
        name = changed.split("=")[0]
        assert differing == ["templates" if name == "learnable_property" else name], flag


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (32, 32)])
def test_photos_get_into_the_square_as_told(pipeline, monkeypatch, size):
    seen = []
    monkeypatch.setattr(
        session,
        "latent_posterior",
        lambda vae, pixels: seen.append(pixels) or (torch.ones(2, 4, 16, 16),) * 2,
    )
    values = torch.randint(256, (*size[::-1], 3), generator=stream(6), dtype=torch.uint8)
    image = Image.fromarray(values.numpy())
    left, top = (side // 2 - 15 if side > 32 else 0 for side in size)
    middle = image.crop((left, top, left + min(size), top + min(size)))
    photo = SimpleNamespace(index=0, dataset=SimpleNamespace(get_image_by_idx=lambda idx: image))
    weights = {}
    for fit in FITS:
        settings = FineTuning(fit=fit, resolution=32)
        *_, weights[fit] = session.encode_photo(settings, pipeline, photo)
        assert weights[fit].shape == (2, 1, 16, 16)
        assert float(weights[fit].mean()) == pytest.approx(1)
        assert torch.equal(weights[fit][0], weights[fit][1].flip(-1))
    by_fit = dict(zip(FITS, seen))
    assert torch.equal(by_fit["squash"], image_to_tensor(image, 32))  # as before there was --fit
    assert torch.equal(by_fit["crop"], image_to_tensor(middle, 32))
    assert (weights["squash"] == 1).all() and (weights["crop"] == 1).all()
    # 32 of 50 to 19 of 30: 6 pixels are mirrored before the photo and 7 after it.
    along = {(50, 30): 1, (30, 50): 2, (32, 32): 0}[size]
    if along:
        counts = weights["pad"][0, 0].amax(dim=2 - along)
        assert counts.gt(0).tolist() == [False] * 3 + [True] * 10 + [False] * 3
        assert counts[12] == pytest.approx(float(counts[3]) / 2)
        mirrored = by_fit["pad"].movedim(along, 0)
        assert torch.equal(mirrored[5], mirrored[6]) and torch.equal(mirrored[0], mirrored[11])
    else:
        assert torch.equal(by_fit["pad"], by_fit["squash"]) and (weights["pad"] == 1).all()


def test_fit_is_no_new_setting_where_older_folders_know_it(tune, monkeypatch):
    flags = ["--classes", "cat", "--max_train_steps=1"]
    assert tune(*flags, name="squash")[0] == tune(*flags, "--center_crop", name="crop")[0] == 0
    for name in ("squash", "crop"):
        settings = read_config(trial(name=name))["settings"]
        assert settings["center_crop"] is (name == "crop") and "fit" not in settings
    monkeypatch.setattr(stage, "load_pipeline", fail)
    for name in ("squash", "crop"):
        status, err = tune(*flags, f"--fit={name}", name=name)
        assert (status, err) == (0, "")
        status, err = tune(*flags, "--fit=pad", name=name)
        assert status == 2 and "--fit: there none, now pad;" in err


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


def test_validation_images_show_the_word(tune, monkeypatch):
    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 5)
    flags = ["--num_validation_images=2", "--learning_rate=1", "--num_vectors=4"]
    flags += ["--classes", "cat", "toy train"]
    _, err = tune("--validation_prompt=a photo of a *", *flags, name="shown")
    assert "no *" not in err
    images = {}
    for folder in ("cat", "toy_train"):
        paths = sorted((trial(name="shown") / folder / "validation").iterdir())
        assert [path.name for path in paths] == ["000002-000.png", "000002-001.png"]
        images[folder] = [Image.open(path).tobytes() for path in paths]
        assert Image.open(paths[0]).size == (32, 32)
        assert images[folder][0] != images[folder][1]
    _, err = tune("--validation_prompt=a photo of a cat", *flags, "--classes", "cat", name="plain")
    assert "--validation_prompt has no *: its images will not show the learned words" in err
    plain = Image.open(trial(name="plain") / "cat" / "validation" / "000002-000.png").tobytes()
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


def test_validation_while_learning(tune, monkeypatch):
    """Losses and images at the start, in between and at the end, in files and in TensorBoard."""
    monkeypatch.setattr(training, "VALIDATION_BATCHES", 2)
    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 5)
    status, err = tune(
        "--classes", "cat", "toy train", "--max_train_steps=5", "--validation_steps=2",
        "--validation_prompt=a photo of a *", "--num_validation_images=1",
        "--learning_rate=0.1", "--report_to=tensorboard",
    )  # fmt: skip
    assert status == 0
    folder = trial() / "cat" / "validation"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["000002-000.png", "000004-000.png", "000005-000.png", "loss.csv"]
    table = [line.split(",") for line in (folder / "loss.csv").read_text().splitlines()]
    assert table[0] == ["step", "loss"] and [int(row[0]) for row in table[1:]] == [0, 2, 4, 5]
    losses = [float(row[1]) for row in table[1:]]
    assert len(set(losses)) == 4 and all(0.5 < loss < 2 for loss in losses)
    assert re.search(r"step 4: validation loss \d\.\d+, mean of 2 classes", err)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in Path("output/e/logs").rglob("events*")}
    events = EventAccumulator(str(events)).Reload()
    scalars = events.Scalars("validation_loss/seed=0_ex=1/cat")
    assert [event.step for event in scalars] == [0, 2, 4, 5]
    assert [event.value for event in scalars] == pytest.approx(losses, abs=1e-6)
    images = events.Images("validation/seed=0_ex=1/cat")
    assert [event.step for event in images] == [2, 4, 5]
    shown = Image.open(io.BytesIO(images[-1].encoded_image_string))
    assert shown.tobytes() == Image.open(folder / "000005-000.png").tobytes()


def test_validation_losses_of_an_interrupted_run_are_those_of_a_whole_one(tune, monkeypatch):
    monkeypatch.setattr(training, "VALIDATION_BATCHES", 1)
    flags = ["--max_train_steps=5", "--validation_steps=1", "--checkpointing_steps=2"]
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        tune(*flags)
    tune(*flags)
    tune(*flags, name="whole")
    tables = [
        (trial(name=n) / "cat" / "validation" / "loss.csv").read_text() for n in ("e", "whole")
    ]
    assert tables[0] == tables[1] and tables[0].count("\n") == 7


def test_tracker_that_is_not_there(tune, monkeypatch):
    monkeypatch.setattr(stage, "load_pipeline", fail)
    status, err = tune("--report_to=mlflow")
    assert (status, err.count("\n")) == (2, 1)
    assert "--report_to: mlflow is not installed; pip install mlflow, or choose one of " in err
    assert "tensorboard, none" in err
    status, err = tune("--report_to=paper")
    assert (status, err.count("\n")) == (2, 1)
    assert "got 'paper', expected one of " in err and "wandb" in err


def test_other_trackers_are_passed_to_accelerate(tune, monkeypatch):
    import accelerate.tracking

    logged = []

    class Notebook(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory = "notebook", False

        def __init__(self, run_name):
            self.run_name = run_name
            super().__init__()

        tracker = property(lambda self: self)

        def start(self):
            pass

        def log(self, values, step=None, **kwargs):
            logged.append((self.run_name, step, values))

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["notebook"])
    accelerate.tracking.register_tracker_class(Notebook)
    try:
        assert tune("--classes", "cat", "--report_to=notebook")[0] == 0
    finally:
        del accelerate.tracking.LOGGER_TYPE_TO_CLASS["notebook"]
    assert [(run, step) for run, step, _ in logged] == [("fine_tune-shard0of1", n) for n in (1, 2)]
    assert set(logged[0][2]) == {"loss/seed=0_ex=1/cat", "lr/seed=0_ex=1/cat"}


@pytest.mark.parametrize("flag", ["--attention_slicing", "--compile"])
def test_ways_to_save_are_no_settings(tune, monkeypatch, flag):
    compiled = []
    monkeypatch.setattr(
        UNet2DConditionModel, "compile", lambda self, *args, **kwargs: compiled.append(self)
    )
    tune("--classes", "cat", name="plain")
    assert tune("--classes", "cat", flag, name="saving")[0] == 0
    assert len(compiled) == (flag == "--compile")
    rows = [read_embeddings(word(name=name))["<cat>"] for name in ("plain", "saving")]
    assert torch.allclose(*rows, atol=1e-5)
    configs = [read_config(trial(name=name))["id"] for name in ("plain", "saving")]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_compiled_unet_gives_the_same_words(tune):
    tune(name="plain")
    status, err = tune("--compile", "--validation_steps=1", name="compiled")
    assert status == 0, err
    for folder in FOLDERS:
        rows = [read_embeddings(word(folder, name=name)) for name in ("plain", "compiled")]
        for x, y in zip(*(each.values() for each in rows)):
            assert torch.allclose(x, y, atol=1e-5)


def test_each_photo_is_encoded_once(tune, monkeypatch):
    """Nested subsets of two sizes, two seeds: nine photos, however many trials."""
    encoded = []

    def counting(vae, photo):
        encoded.append(photo.numpy().tobytes())
        return latent_posterior(vae, photo)

    monkeypatch.setattr(session, "latent_posterior", counting)
    flags = ["--examples_per_class", "1", "3", "--num_trials=2"]
    assert tune(*flags)[0] == 0
    assert len(encoded) == len(set(encoded)) == 9


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


@pytest.mark.slow
def test_published_command_is_understood(
    workdir, coarse_model, monkeypatch, capsys, short_validation
):
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
    assert f"{coarse_model} has no fp16 weights: its ordinary weights are used" in err
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
    flags = ["--classes", "cat", "--mixed_precision=fp16", "--device=cpu"]
    status, err = tune(*flags, name="fp16")
    assert status == 0
    assert "no GPU: float32 is used in place of --mixed_precision=fp16" in err
    assert bytes_of("fp16") == bytes_of("plain")


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


def note_classes(names: list[str]) -> None:
    """Write config.json as fine_tune.py does for a trial of these classes."""
    config = {"id": "c0ffee", "arguments": {"class_names": names}}
    (trial() / "config.json").write_text(json.dumps(config))


def learn(class_name="cat", seed=0, examples=1, dim=32, config_id="c0ffee", **header):
    """A word as fine_tune.py writes it, with the config.json of its trial."""
    token = f"<{class_name.replace(' ', '_')}>"
    rows = torch.randn(2, dim, generator=stream(stable_hash(class_name, seed)))
    path = word(class_name.replace(" ", "_"), seed=seed, examples=examples)
    write_embeddings(path, {token: rows}, {
        "model": "m", "dataset": "folder", "class": class_name, "config_id": config_id, **header,
    })  # fmt: skip
    config = trial(seed=seed, examples=examples) / "config.json"
    if not config.exists():
        config.write_text(json.dumps({"id": config_id}))
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
    assert out.splitlines() == [
        f"{merged_path(seed, k)}: 2 words: <cat> <toy_train>" for seed in (2, 3) for k in (1, 4)
    ]
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
    assert out == f"{merged_path()}: 1 word: <cat>\n"  # of which dataset is not known


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


def foreign(path: Path, content) -> Path:
    """A word as another tool writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def test_folder_says_whose_a_word_is(merge):
    rows = [torch.full((2, 32), float(number)) for number in range(4)]
    foreign(word("cat"), {"<my-cat>": rows[0]})
    foreign(word("stop_sign"), {"emb_params": rows[1]})
    learn("dog")
    status, out, err = merge()
    assert status == 0 and "3 words: <cat> <dog> <stop_sign>" in out
    assert f"{word('cat')}: its word <my-cat> is <cat> in the merged file" in err
    found, header = read_embeddings(merged_path()), read_header(merged_path())
    assert torch.equal(found["<cat>"], rows[0]) and torch.equal(found["<stop_sign>"], rows[1])
    known = class_tokens(header, found)
    assert token_for("stop sign", known, found) == "<stop_sign>"  # whose folder is stop_sign

    # Where fine_tune.py has noted the classes, they have tokens of their own.
    names = ["Cat", "cat", "dog", "stop sign"]
    note_classes(names)
    foreign(word("cat-2"), {"<my-cat>": rows[2]})
    shutil.move(word("cat").parent, word("Cat").parent)
    status, out, err = merge()
    assert status == 0 and "no word yet" not in err
    found, header = read_embeddings(merged_path()), read_header(merged_path())
    assert class_tokens(header, found) == {
        "Cat": "<cat>", "cat": "<cat-2>", "dog": "<dog>", "stop sign": "<stop_sign>",
    }  # fmt: skip
    assert torch.equal(found["<cat>"], rows[0]) and torch.equal(found["<cat-2>"], rows[2])


def test_word_of_a_class_from_a_file(merge, photos, small_model, capsys):
    """It goes before what lies in the class's folder, and edits are made with it."""
    rows = torch.randn(2, 32, generator=stream(5))
    learn("toy train")
    learn("cat")
    file = foreign(Path("words/w=1.pt"), {"string_to_param": {"*": rows}, "name": "someone's"})
    status, out, err = merge("--word", f"cat={file}", f"stop sign={file}")
    assert status == 0 and "3 words: <cat> <stop_sign> <toy_train>" in out
    assert "words from elsewhere for cat, stop sign: if they were learned from" in err
    found = read_embeddings(merged_path())
    assert torch.equal(found["<cat>"], rows) and torch.equal(found["<stop_sign>"], rows)
    assert class_tokens(read_header(merged_path()), found)["stop sign"] == "<stop_sign>"
    argv = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e", "--num_synthetic=1",
            f"--model_path={small_model}", "--num_inference_steps=2"]  # fmt: skip
    assert run(generate_augmentations.main, argv, capsys)[0] == 0
    (line,) = [
        line for line in Path("output/e/aug/seed=0_ex=1/metadata.jsonl").read_text().splitlines()
        if '"stop sign"' in line
    ]  # fmt: skip
    assert json.loads(line)["prompt"] == "a photo of a <stop_sign>"


def test_words_from_elsewhere_alone(merge):
    """No word was trained: the experiment begins with these, for each of its trials."""
    content = {"clip_l": torch.ones(2, 32), "clip_g": torch.zeros(2, 48)}
    file = foreign(Path("my-cat.safetensors"), content)
    status, out, _ = merge("--word", f"a cat={file}", "--num_trials=2")
    assert status == 0 and out.count("1 word: <a_cat>") == 2
    for seed in (0, 1):
        first, second = read_words(merged_path(seed), 2)
        assert torch.equal(first["<a_cat>"], content["clip_l"])
        assert torch.equal(second["<a_cat>"], content["clip_g"])
    learn("dog")
    status, _, err = merge("--word", f"a cat={file}")
    assert status == 2 and f"{embedding_files(word('dog'))[1]} is missing" in err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["my-cat.pt"], "--word: got 'my-cat.pt', expected CLASS=FILE"),
        (["=my-cat.pt"], "expected CLASS=FILE"),
        (["cat=my-cat.pt", "cat=b.pt"], "--word: 'cat' has two files, my-cat.pt and b.pt"),
        (["cat=absent.pt"], "embedding file absent.pt does not exist"),
        (["horse=my-cat.pt"], "--word: seed=0_ex=1 has no class 'horse'; there are: cat, dog"),
    ],
)
def test_words_that_cannot_be_given(merge, flags, message):
    learn("dog")
    note_classes(["cat", "dog"])
    foreign(Path("my-cat.pt"), {"emb_params": torch.ones(2, 32)})
    status, _, err = merge("--word", *flags)
    assert (status, err.count("\n")) == (2, 1) and message in err
    assert not merged_path().parent.exists()


def test_foreign_word_is_not_trained_over(tune, monkeypatch):
    foreign(word("cat"), {"<my-cat>": torch.ones(2, 32)})
    with monkeypatch.context() as patch:
        patch.setattr(stage, "load_pipeline", fail)
        status, err = tune()
    assert status == 2 and f"{word('cat')} is a word that fine_tune.py has not made" in err
    assert read_embeddings(word("cat")).keys() == {"<my-cat>"}


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
