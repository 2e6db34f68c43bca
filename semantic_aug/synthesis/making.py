"""Making the missing images of a trial: resumable, and distributed among processes.

A block that lacks an image is computed whole, so that interruptions do not change an image's
bytes.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from semantic_aug import counted
from semantic_aug.experiment.config import config_id, write_config
from semantic_aug.experiment.files import atomic_path, remove_leftovers
from semantic_aug.experiment.progress import progress_bar
from semantic_aug.generative_augmentation import GenerativeAugmentation, augmented
from semantic_aug.images.framing import mask_within, photo_within
from semantic_aug.synthesis.jobs import (
    Job,
    job_generator,
    make_jobs,
    share_of,
    without_object,
)
from semantic_aug.synthesis.records import (
    RecordWriter,
    check_settings,
    discard_other_records,
    find_images,
    note_left_out,
    whole_images,
    write_metadata,
)
from semantic_aug.synthesis.variants import read_variants

WRITERS = 2  # threads that compress and write images while the next batch is computed

log = logging.getLogger(__name__)


def generate(
    dataset,
    make_augmentation: Callable[[], GenerativeAugmentation],
    folder: Path,
    settings: Mapping,
    *,
    num_synthetic: int,
    batch_size: int,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    shard: tuple[int, int] = (0, 1),
    already: int = 0,
    constants: Mapping | None = None,
    arguments: Mapping | None = None,
    notes: Mapping | None = None,
    of_class: Mapping[str, Mapping[str, str | None]] | None = None,
    left_out: Mapping[str, str] | None = None,
    save_size: int | None = None,
    words: Mapping[str, str] | None = None,
    count: Callable[[int], None] = lambda images: None,
    computed: Callable[[float, Sequence[Image.Image]], None] = lambda seconds, images: None,
) -> int:
    """Make the missing synthetic images of a trial.

    Args:
        dataset: a FewShotDataset, the trial's training photos.
        make_augmentation: called once, and only if an image is missing; it may load a model.
        folder: of the images, `records/`, `metadata.jsonl` and `config.json`.
        settings: everything that changes an image, for config.json. Records of other settings do
            not count, and are removed with their images before the first image is made.
        num_synthetic: variants per photo.
        batch_size: images per block.
        seed: of the trial.
        indices: of the photos (default: all).
        shard: this process's (index, count).
        already: number of blocks distributed before this trial.
        constants: fields that all records share.
        arguments: for config.json.
        notes: for config.json, beside the settings.
        of_class: facts of a class that may change while `settings` stay, such as the sha256 of its
            learned word, by class and by key of the records (`CLASS_KEYS`). Images whose record
            differs are removed and made again.
        left_out: reasons why photos get no images, by source, for `records/`; None if no photo can
            be left out.
        save_size, words: see `compute`.
        count: called now and then with the number of images made since its last call.
        computed: called after each block with the seconds and the images of the block; loading
            before the first block does not count.

    Returns:
        The number of images made.
    """
    indices = range(len(dataset)) if indices is None else indices
    sources = dataset.sources()
    remove_leftovers(folder)
    identity = config_id(settings)
    finished, stale = find_images(folder, identity, of_class)
    finished = whole_images(folder, finished)
    mine = share_of(make_jobs(indices, num_synthetic), batch_size, shard, already)
    todo = [block for block in mine if any(job.file_name not in finished for job in block)]
    kept = sum(job.file_name in finished for block in mine for job in block)
    if not todo and not finished:
        return 0  # this process has no block
    augmentation, made = None, 0
    details: tuple[str, ...] = ()
    if todo:
        augmentation = make_augmentation()
        augmentation.bind(dataset)
        details = augmentation.details
    # From here on the folder changes; the model is loaded already. Images that are out of date go
    # before any image is made, so that no record ever describes another image.
    write_config(folder, settings, arguments or {}, notes)
    discard_other_records(folder, identity)
    if left_out is not None:
        note_left_out(folder, identity, left_out, sources, shard)
    for name in stale.keys() & {job.file_name for block in mine for job in block}:
        (folder / name).unlink(missing_ok=True)
    if not todo:
        write_metadata(folder, identity)  # a process may have been killed just before this
        return 0
    progress = progress_bar(
        total=sum(map(len, mine)), initial=kept, desc=f"generate {folder.name}", unit="image"
    )
    writing: deque[tuple] = deque()  # images on their way to the disk, with their records

    def finish_oldest():
        nonlocal made
        saved, record = writing.popleft()
        saved.result()
        writer.write(record)  # only after its image is whole on disk
        made += 1
        progress.update()

    try:
        with (
            progress,
            RecordWriter(folder, identity, shard) as writer,
            ThreadPoolExecutor(WRITERS) as pool,
        ):
            try:
                for block in todo:
                    before, began = made, time.monotonic()
                    images: list[Image.Image] = []
                    results = compute(dataset, augmentation, block, sources, seed, save_size, words)
                    for job, image, edits in results:
                        images.append(image)
                        if job.file_name in finished:
                            continue
                        record = _record(dataset, job, sources, edits, constants or {}, details)
                        record |= (of_class or {}).get(record["class_name"], {})
                        saving = pool.submit(_save, image, folder / job.file_name)
                        writing.append((saving, record))
                    computed(time.monotonic() - began, images)
                    while len(writing) > len(block):  # images of the block before
                        finish_oldest()
                    if made > before:
                        count(made - before)
                while writing:
                    finish_oldest()
            except BaseException:
                with contextlib.suppress(OSError):  # computed images are not lost
                    while writing:
                        finish_oldest()
                raise
    except OSError:
        log.error("%s: %s made before this error", folder, counted(made, "image"))
        raise
    finally:
        write_metadata(folder, identity)
    return made


def _save(image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def compute(
    dataset,
    augmentation,
    block: Sequence[Job],
    sources,
    seed,
    save_size: int | None = None,
    words: Mapping[str, str] | None = None,
) -> Iterator[tuple]:
    """Compute the images of a block; yields (job, image, edits) for each job.

    Args:
        sources: the source of each photo of the dataset.
        seed: of the trial.
        save_size: longer side in pixels to which larger photos are reduced before they are edited.
        words: by class name, the name of the class in prompts.
    """
    images, labels, metadata = [], [], []
    indices = dict.fromkeys(job.index for job in block)  # each photo is decoded once
    photos = {index: photo_within(dataset.get_image_by_idx(index), save_size) for index in indices}
    masks = {}
    if augmentation.needs_mask:
        found = {index: dataset.get_mask_by_idx(index) for index in indices}
        masks = {index: mask_within(mask, save_size) for index, mask in found.items()}
    for job in block:
        meta = {"source": sources[job.index], **dataset.get_metadata_by_idx(job.index)}
        if words and meta["name"] in words:
            meta["words"] = words[meta["name"]]
        if augmentation.needs_mask:
            meta["mask"] = masks[job.index]
        images.append(photos[job.index])
        labels.append(dataset.get_label_by_idx(job.index))
        metadata.append(meta)
    generators = [job_generator(seed, sources[job.index], job.repeat) for job in block]
    results, edits = augmented(augmentation, images, labels, metadata, generators)
    return zip(block, results, edits)


def _record(dataset, job: Job, sources, edits, constants: Mapping, details) -> dict:
    label = dataset.get_label_by_idx(job.index)
    return {
        "file_name": job.file_name,
        "label": label,
        "class_name": dataset.class_names[label],
        "source": sources[job.index],
        "index": job.index,
        "repeat": job.repeat,
        **{key: constants[key] for key in ("seed", "examples_per_class") if key in constants},
        # A single text, even if edits of a sequence differ in their prompts: a column has one type.
        "prompt": " | ".join(dict.fromkeys(e.prompt for e in edits if e.prompt is not None)),
        "aug": [edit.aug for edit in edits],
        "strength": [edit.strength for edit in edits],
        "guidance_scale": [edit.guidance_scale for edit in edits],
        "mask": [edit.mask for edit in edits],
        "inverted": [edit.inverted for edit in edits],
        **{key: [edit.details.get(key) for edit in edits] for key in details},
        "embeddings": None,
        **constants,
        **(_safety(edits) if "safety_checker" in constants else {}),
    }


def _safety(edits: Sequence) -> dict:
    """Fields from a safety checker: the attempts, and whether the image stays flagged."""
    return {
        "attempts": [edit.attempts for edit in edits],
        "flagged": any(edit.flagged for edit in edits),
    }


def augment_dataset(
    dataset, augmentation: GenerativeAugmentation, num_repeats: int, folder: Path | None
) -> dict[int, list[tuple]]:
    """Make variants of every photo: in memory, or with a folder, as files with records.

    Returns:
        `{index: [(image or path, label), ...]}`.
    """
    every = range(len(dataset))
    without = without_object(dataset, every) if augmentation.needs_object else {}
    indices, sources = [idx for idx in every if idx not in without], dataset.sources()
    if folder is not None:
        settings = {
            "dataset": type(dataset).__qualname__,
            "aug": type(augmentation).__qualname__,
            "photos": dataset.photo_digest(),
        }
        check_settings(folder, settings, overwrite=False)
        constants = {"seed": dataset.seed}
        generate(
            dataset,
            lambda: augmentation,
            folder,
            settings,
            num_synthetic=num_repeats,
            batch_size=1,
            seed=dataset.seed,
            indices=indices,
            constants=constants,
            arguments={"num_synthetic": num_repeats},
            left_out={sources[idx]: reason for idx, reason in without.items()} or None,
        )
        return read_variants(folder, dataset, num_repeats)
    augmentation.bind(dataset)
    variants: dict[int, list[tuple]] = {}
    jobs = make_jobs(indices, num_repeats)
    for job in progress_bar(iterable=jobs, desc="generate", unit="image"):
        for _, image, _ in compute(dataset, augmentation, [job], sources, dataset.seed):
            label = dataset.get_label_by_idx(job.index)
            variants.setdefault(job.index, []).append((image, label))
    return variants
