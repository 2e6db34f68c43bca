"""Train the LoRA of a trial, and write its checkpoints and its file."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from semantic_aug import UserError, stable_hash
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.loading import noise_scheduler_of, text_encoders
from semantic_aug.diffusion.lora import new_lora
from semantic_aug.experiment.checked_files import read_checked, write_checked
from semantic_aug.experiment.config import config_id
from semantic_aug.experiment.interrupts import stop_deferred
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.tensors import write_tensors
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.names import differences
from semantic_aug.words.checkpoints import checkpoint_path, list_checkpoints, remove_checkpoints
from semantic_aug.words.domain_adapter import (
    ClassPhotos,
    DomainAdapter,
    Latents,
    train_adapter,
)
from semantic_aug.words.embeddings import LearnedWords, read_header
from semantic_aug.words.prior import read_prior, told_of_class
from semantic_aug.words.prompts import Prompts

log = logging.getLogger(__name__)

WORD_IN_USE = "<word-in-use>"  # stands for every word while a LoRA is trained


@dataclass(frozen=True, eq=False)
class DomainLesson:
    """The LoRA of a trial whose words are all trained.

    Attributes:
        path: of its file; checkpoints lie beside it.
        words: the file of each class's word.
        prior: the prior images of each class; training shows all of them or none.
        settings: everything that affects the LoRA.
        header: of the file.
    """

    dataset: FewShotDataset
    trial: Trial
    path: Path
    words: Mapping[str, Path]
    prior: Mapping[str, list[Path]]
    settings: dict
    header: dict

    @property
    def folder(self) -> Path:
        return self.path.parent


# --- existing files --------------------------------------------------------------------------


def is_trained(lesson: DomainLesson, overwrite: bool) -> bool:
    """Whether a LoRA's file was made with these settings and words.

    Raises:
        UserError: the file was made with other settings, or by another tool.
    """
    if not lesson.path.exists():
        return False
    found = read_header(lesson.path)
    if found.get("id") == config_id(lesson.settings) or overwrite:
        return found.get("id") == config_id(lesson.settings)
    if "id" not in found or "settings" not in found:
        raise UserError(
            f"{lesson.path} is a LoRA that fine_tune.py has not made: move it away, or pass "
            "--overwrite to train one in its place"
        )
    differing = differences(json.loads(found["settings"]), lesson.settings)
    raise UserError(
        f"{lesson.path} was made with other settings: {'; '.join(differing)}; delete this file to "
        "train it again (--overwrite would also train the words again)"
    )


def usable_checkpoint(lesson: DomainLesson, overwrite: bool) -> Path | None:
    """The latest complete checkpoint.

    Raises:
        UserError: the checkpoint was made with other settings.
    """
    for path in reversed(list_checkpoints(lesson.folder).values()):
        try:
            differing = differences(_read_checkpoint(path)["settings"], lesson.settings)
        except UserError as error:
            log.warning("%s; this checkpoint is not used", error)
            continue
        if not differing:
            return path
        if overwrite:
            remove_checkpoints(lesson.folder)
            return None
        raise UserError(
            f"{path} was made with other settings: {'; '.join(differing)}; delete this file to "
            "start this LoRA again (--overwrite would also train the words again)"
        )
    return None


def _read_checkpoint(path: Path) -> dict:
    try:
        found = torch.load(io.BytesIO(read_checked(path)), map_location="cpu", weights_only=True)
        return {"state": found["state"], "settings": json.loads(found["settings"])}
    except Exception as error:  # on broken files, the unpickler raises any kind of exception
        raise UserError(f"cannot read checkpoint {path}: it is damaged") from error


def _write_checkpoint(lesson: DomainLesson, adapter: DomainAdapter) -> None:
    content = io.BytesIO()
    settings = json.dumps(lesson.settings)
    torch.save({"state": adapter.state_dict(), "settings": settings}, content)
    write_checked(checkpoint_path(lesson.folder, adapter.step), content.getvalue())


# --- training --------------------------------------------------------------------------------


def learn_domain(
    settings: FineTuning, pipeline, prompts: Prompts, encode: Callable, lesson: DomainLesson,
    count: Callable[[DomainAdapter], None],
) -> str | None:  # fmt: skip
    """Train a trial's LoRA from its latest checkpoint, and write it; the model stays unchanged.

    If asked to end, it writes a checkpoint first.

    Args:
        prompts: the sentences, with `WORD_IN_USE` in them.
        encode: from the number of a photo to mean, deviation and weights, see `encode_photo`.
        count: called after each step.

    Returns:
        Why the training failed, or None.
    """
    classes = [_class_photos(settings, pipeline, encode, lesson, name) for name in lesson.words]
    checkpoint = usable_checkpoint(lesson, settings.overwrite)
    seed = stable_hash("domain-adapter", lesson.trial.seed, lesson.trial.examples_per_class)
    generator = torch.Generator().manual_seed(seed)
    in_half = pipeline.unet.dtype == torch.float16
    with _new_lora_in(pipeline, settings, generator) as weights, stop_deferred() as asked_to_end:
        adapter = DomainAdapter(weights, classes, settings, generator, in_half)
        if checkpoint is not None:
            adapter.load_state_dict(_read_checkpoint(checkpoint)["state"])
            log.info("%s: its LoRA goes on from step %d of %d", lesson.trial.name, adapter.step,
                     settings.lora_steps)  # fmt: skip
        for _ in train_adapter(pipeline, noise_scheduler_of(pipeline), adapter, prompts):
            count(adapter)
            if adapter.diverged:
                return adapter.diverged
            if adapter.step % settings.checkpointing_steps == 0 or asked_to_end():
                _write_checkpoint(lesson, adapter)
                remove_checkpoints(lesson.folder, settings.checkpoints_total_limit)
            if asked_to_end():
                break
        if not adapter.is_running:
            write_tensors(lesson.path, adapter.weights, lesson.header)
            remove_checkpoints(lesson.folder)
            log.log(RESULT, "%s: a LoRA of rank %d", lesson.path, settings.lora_rank)
    return None


@contextlib.contextmanager
def _new_lora_in(pipeline, settings: FineTuning, generator: torch.Generator) -> Iterator[dict]:
    """Within the block, the UNet has a new LoRA; yields its weights."""
    unet, rank = pipeline.unet, cast(int, settings.lora_rank)
    for _, encoder in text_encoders(pipeline):
        encoder.eval()
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        weights = new_lora(unet, rank, generator)
        unet.train(settings.gradient_checkpointing)  # only checkpointing depends on this mode
        yield weights
    finally:
        unet.unload_lora()
        unet.eval()


def _class_photos(
    settings: FineTuning, pipeline, encode: Callable, lesson: DomainLesson, name: str
) -> ClassPhotos:
    """A class's word, photos and prior images."""
    rows = LearnedWords.read(lesson.words[name]).only_rows()[: len(text_encoders(pipeline))]
    photos = Latents(*map(torch.stack, zip(*map(encode, lesson.dataset.indices([name])))))
    if not lesson.prior:
        return ClassPhotos(rows, photos)
    prior = read_prior(pipeline, lesson.prior[name], cast(int, settings.resolution))
    told = told_of_class(pipeline, name, photos.mean.shape[-2:])
    return ClassPhotos(rows, photos, prior, told)
