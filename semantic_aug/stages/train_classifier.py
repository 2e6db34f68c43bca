"""Training and evaluating a classifier: its photos, one trial after the other, the summary."""

import functools
import logging
import time
from pathlib import Path

import pandas as pd

from semantic_aug import counted
from semantic_aug.cli.notices import RESULT
from semantic_aug.diffusion.loading import pick_device
from semantic_aug.evaluation.backbone import Backbone, default_precision, load_backbone
from semantic_aug.evaluation.contrastive import VIEWS, Checkpoint
from semantic_aug.evaluation.features import LabelledFeatures, load_split, readable, split_features
from semantic_aug.evaluation.leaks import check_splits, photos_of
from semantic_aug.evaluation.metrics import evaluation
from semantic_aug.evaluation.plots import plot_results
from semantic_aug.evaluation.results import (
    ONCE,
    SUMMARY_FILE,
    TRAINING,
    VALIDATION,
    checkpoint_file,
    confusion_file,
    contrastive_rows,
    is_finished,
    metric_names,
    results_file,
    score_rows,
    selected_row,
    state_of,
    trials_with_files,
    write_confusions,
    write_results,
)
from semantic_aug.evaluation.sampling import load_examples, load_negatives
from semantic_aug.evaluation.summary import (
    ELSEWHERE_PHOTOS,
    EVALUATION_PHOTOS,
    write_comparison,
    write_summary,
)
from semantic_aug.evaluation.training import known_logits, train_trial
from semantic_aug.experiment.files import check_writable, derive
from semantic_aug.experiment.names import (
    CACHE,
    RESULTS,
    Trial,
    aug_dir,
    check_component,
)
from semantic_aug.experiment.processes import at_work
from semantic_aug.experiment.sharding import shard_blocks, shard_of
from semantic_aug.experiment.timing import TRAIN, timed
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.settings.classification import (
    BEST_VAL,
    SUPCON,
    Classification,
    TrainingOptions,
)
from semantic_aug.settings.common import Run
from semantic_aug.stages.classified_photos import (
    check_class_names,
    check_command,
    check_several_classes,
    evaluation_splits,
    hard_negatives,
    pasted_elsewhere,
    training_photos,
)
from semantic_aug.stages.classifier_settings import (
    compared_folders,
    method_of,
    training_options,
    wants_synthetic,
)
from semantic_aug.stages.common import (
    arguments_of,
    dataset_of,
    experiment_of,
    nothing_to_do,
    prepared,
    stage,
    trials_of,
)
from semantic_aug.stages.kept_classifiers import keep_classifier, tidy, to_do
from semantic_aug.stages.kept_views import advise, check_memory, images_of
from semantic_aug.stages.made_alike import check_alike
from semantic_aug.stages.result_settings import (
    PHOTOS_OF,
    claim,
    content_digest,
    identity_of,
    result_settings,
    training_identity,
)

log = logging.getLogger(__name__)


@stage(Classification)
def train_classifier(run: Run, settings: Classification) -> pd.DataFrame:
    """Train and evaluate a classifier on the photos of each trial and their synthetic variants.

    Returns:
        The content of summary.csv: accuracy by number of examples and split, with 95 % intervals.
        Its `attrs` have `folder`, the folder of results, and `comparison`, the rows of
        comparison.csv.

    Raises:
        UserError: an error that the user can fix, raised before the backbone is loaded.
    """
    run, experiment, shard = (
        prepared(run, settings.logdir),
        experiment_of(run),
        shard_of(settings.shard_index, settings.num_shards),
    )
    options, uses_synthetic = training_options(settings), wants_synthetic(settings)
    sets, everyones = settings.aug_name, trials_of(run)
    aug_dirs = {t: {name: aug_dir(experiment, name, t) for name in sets} for t in everyones}
    method = method_of(settings)
    check_component("--method", method)
    folder = check_writable(Path(settings.logdir or experiment / RESULTS) / method)
    trials = [everyones[number] for number in sorted(shard_blocks(len(everyones), *shard))]
    if not trials:
        log.log(RESULT, "%s", nothing_to_do(shard, counted(len(everyones), "trial")))
        return table_of(folder, [], [])
    others = compared_folders(run, settings, folder, everyones)
    device = pick_device(settings.device)

    train = dataset_of(run, "train")
    splits = evaluation_splits(run, settings, options)
    subset = functools.cache(functools.partial(dataset_of, run, "train"))

    @functools.cache
    def train_set(trial: Trial) -> FewShotDataset:
        folders = aug_dirs[trial].values() if uses_synthetic else ()
        return training_photos(run, settings, trial, subset(trial), folders)

    near = settings.negative_aug_name
    flag = "--negative_aug_name"
    near_dirs = {t: aug_dir(experiment, near, t, flag) for t in everyones} if near else {}

    @functools.cache
    def near_misses(trial: Trial) -> dict[int, list[tuple]]:
        if not near_dirs:
            return {}
        return hard_negatives(run, settings, trial, subset(trial), near_dirs[trial])

    finished = {trial for trial in trials if is_finished(folder, trial)}
    open_trials = [t for t in trials if settings.overwrite or t not in finished]
    for trial in open_trials:
        check_class_names([train_set(trial), *splits.values()])
        near_misses(trial)
        if options.objective == SUPCON:
            check_several_classes(trial, train_set(trial), settings.classes)
    used = [*(sets if uses_synthetic else ()), *([near] if near else [])]
    for name in used:
        together = sorted({*everyones, *trials_with_files(folder)})
        folders = {trial: aug_dir(experiment, name, trial) for trial in together}
        mixed = settings.overwrite or settings.mixed_settings
        check_alike(folders, mixed, name if len(used) > 1 else "")
    evaluated = {name: photos_of(dataset, settings.classes) for name, dataset in splits.items()}
    # Settings of all trials, so that every process writes the same config.json.
    trained = {trial: photos_of(subset(trial), settings.classes) for trial in everyones}
    left_out = {
        trial: check_splits(trial.name, photos, evaluated, check_command(run))
        for trial, photos in trained.items()
    }
    pasted = pasted_elsewhere(run, settings, splits)

    size = None if settings.image_size is None else (settings.image_size, settings.image_size)
    backbone = load_backbone(
        settings.classifier_backbone,
        device,
        size,
        settings.finetune,
        settings.from_scratch,
        settings.backbone_precision,
    )
    sizes = images_of(open_trials, train_set, settings.classes)
    check_memory(sizes, backbone, options, settings.image_memory)
    sets_used = aug_dirs if uses_synthetic else {}
    found = result_settings(run, settings, options, backbone, train, splits, sets_used, near_dirs)
    found[EVALUATION_PHOTOS] = content_digest(*evaluated.values())
    for trial, photos in trained.items():
        found[PHOTOS_OF + trial.name] = training_identity(photos, left_out[trial])
    for split, dataset in pasted.items():
        splits[split], found[ELSEWHERE_PHOTOS] = dataset, dataset.digest
        for each in left_out.values():
            each[split] = {n for n, idx in enumerate(dataset.of) if idx in each[VALIDATION]}
    if backbone.precision != default_precision(device, settings.finetune):  # older files imply it
        found["backbone_precision"] = backbone.precision
    claim(folder, found, trials, arguments_of(run, settings))
    finished = {trial for trial in finished if results_file(folder, trial).exists()}
    for trial in finished:  # if a process was killed in between
        checkpoint_file(folder, trial).unlink(missing_ok=True)
    pending = to_do(folder, settings, trials, finished)
    if len(pending) < len(trials):
        skipped = len(trials) - len(pending)
        log.log(RESULT, "%d of %d trials are finished: skipped", skipped, len(trials))
    # Other processes finish other trials meanwhile.
    from_all = functools.partial(derive, lambda: state_of(folder))
    wanted = dict.fromkeys(everyones, (1, images_shown(options)))
    with at_work(experiment, TRAIN, wanted, method, shard) as reporter:
        try:
            run_trials(
                pending, train_set, near_misses, splits, left_out, backbone, options, settings,
                experiment, folder, reporter,
            )  # fmt: skip
        finally:  # also when one of several trials fails
            tidy(folder, settings)
            summary = from_all(lambda: write_summary(folder, method, experiment, used))
    comparison = []
    if others:
        comparison = from_all(lambda: write_comparison(folder, method, others))
    from_all(lambda: plot_results({method: folder, **others}, folder, train.class_names))
    return table_of(folder, summary, comparison)


def table_of(folder: Path, summary: list[dict], comparison: list[dict]) -> pd.DataFrame:
    """The content of summary.csv, with what a command prints in `attrs`."""
    path = folder / SUMMARY_FILE
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    table.attrs |= {"folder": str(folder), "summary": summary, "comparison": comparison}
    return table


# --- trials ----------------------------------------------------------------------------------


def run_trials(
    trials, train_set, near_misses, splits, left_out, backbone: Backbone,
    options: TrainingOptions, settings: Classification, experiment: Path, folder: Path, reporter,
) -> None:  # fmt: skip
    """Train, evaluate and write the result files of each trial in turn.

    Args:
        train_set: function of a trial that gives its photos.
        near_misses: function of a trial that gives its hard negatives by photo.
        splits: the datasets to evaluate on, by the split's name in the results.
        left_out: by trial and split, the photos that are left out of its evaluation.
    """
    if not trials:
        return
    method = folder.name
    cache = experiment / CACHE
    sizes = images_of(trials, train_set, settings.classes)
    advise(sizes, backbone, options, settings.image_memory)
    class_names = train_set(trials[0]).class_names
    check_class_names([train_set(trials[0]), *splits.values()])
    with timed(experiment, TRAIN, method, device=backbone.device) as work:  # once for all trials
        whole, labels = _evaluated_splits(splits, backbone, settings, cache)
        work.images = sum(map(len, splits.values()))
    # Half for the validation split, which also stays in memory if the backbone is trained.
    whole_memory = settings.image_memory / 2 if backbone.trained else settings.image_memory
    for trial in trials:
        started = time.monotonic()
        reporter.works_on([trial])
        with timed(experiment, TRAIN, method, trial, backbone.device, again=True) as work:
            size = backbone.image_size
            features_of = {
                split: functools.partial(_without, each, left_out[trial][split])
                for split, each in whole.items()
            }
            present = {
                split: {label for idx, label in each.items() if idx not in left_out[trial][split]}
                for split, each in labels.items()
            }
            hard = near_misses(trial)
            memory = whole_memory / 2 if hard else whole_memory
            examples = load_examples(
                train_set(trial), size, settings.classes, memory, settings.num_workers
            )
            _describe(trial, examples, class_names, settings.classes, present)
            negatives = None
            if hard:
                negatives = load_negatives(
                    train_set(trial), hard, size, settings.classes, memory, settings.num_workers
                )
                number = counted(len(negatives.labels), "hard negative")
                log.log(RESULT, "%s: %s", trial.name, number)
            identity = f"{identity_of(folder, trial)} {backbone.device.type}"
            checkpoint = Checkpoint(checkpoint_file(folder, trial), identity)
            result = train_trial(
                examples,
                features_of.get(VALIDATION),
                backbone,
                options,
                trial,
                len(class_names),
                cache,
                negatives,
                checkpoint,
            )
            trained = set(examples.labels.tolist())
            logits = {
                split: known_logits(result.head, features_of[split]())
                for split in (VALIDATION, *ONCE)
                if split in features_of and trained & present[split]
            }
            once = {split: evaluation(*logits[split]) for split in ONCE if split in logits}
            work.images = images_shown(options)
        reporter.count(work.images)
        evaluated = {split: trained & labels for split, labels in present.items()}
        rows = _result_rows(trial, metric_names(class_names), trained, evaluated, result, once)
        scores = ({VALIDATION: result.validation} if result.validation else {}) | once
        write_confusions(confusion_file(folder, trial), scores, class_names)
        keep_classifier(folder, trial, settings, backbone, examples, result, scores, logits)
        write_results(results_file(folder, trial), rows)
        checkpoint.remove()
        tidy(folder, settings)
        names = {split: split.lower() for split in scores} | {VALIDATION: "val"}
        said = [f"{names[split]} {each.mean_accuracy:.1%}" for split, each in scores.items()]
        said += [f"epoch {result.selected}"] if options.select == BEST_VAL else []
        line = ", ".join(said) or "trained, and evaluated on nothing"
        log.log(RESULT, "%s: %s (%.1f s)", trial.name, line, time.monotonic() - started)


def images_shown(options: TrainingOptions) -> int:
    """How many images pass the backbone in the training of a trial, without hard negatives."""
    contrastive = VIEWS * options.contrastive_epochs if options.objective == SUPCON else 0
    epochs = options.num_epochs + contrastive
    return epochs * options.iterations_per_epoch * options.batch_size


def _evaluated_splits(
    splits, backbone: Backbone, settings: Classification, cache: Path
) -> tuple[dict, dict[str, dict]]:
    """By split, a function that gives its features by the present backbone, and its labels.

    Features of a frozen backbone are computed here, once for all trials and epochs.
    """
    functions: dict = {}
    labels: dict[str, dict] = {}
    for name, dataset in splits.items():
        split = load_split(dataset, backbone.image_size, settings.classes, settings.num_workers)
        if not backbone.trained:
            features = split_features(backbone, split, cache)
            functions[name] = functools.partial(_the_same, features)
            labels[name] = dict(zip(features.indices, features.labels.tolist()))
            continue
        # The val split is evaluated after every epoch, the test split once per trial.
        memory = settings.image_memory / 2 if name == VALIDATION else 0
        split = readable(split, memory, settings.num_workers)
        functions[name] = functools.partial(split_features, backbone, split)
        labels[name] = dict(zip(split.images.items, split.labels.tolist()))
    return functions, labels


def _the_same(features):
    return features


def _without(features_of, left_out: set[int]) -> LabelledFeatures:
    return features_of().without(left_out)


def _describe(trial: Trial, examples, class_names, classes, present: dict) -> None:
    """Log the training photos of a trial, and the classes without photos."""
    trained = set(examples.labels.tolist())
    everything = range(len(class_names)) if classes is None else map(class_names.index, classes)
    _name_absent(class_names, set(everything), trained, present)
    num_variants = len(examples.labels) - examples.num_photos
    log.log(
        RESULT,
        "%s: %s and %s of %s",
        trial.name,
        counted(examples.num_photos, "photo"),
        counted(num_variants, "synthetic image"),
        counted(len(trained), "class"),
    )


def _result_rows(trial, names, trained, evaluated, result, once) -> list[tuple]:
    """Rows of results: Training and Validation of every epoch, other splits of the selected."""
    rows = contrastive_rows(trial, result.contrastive)
    for epoch, (running, validated) in enumerate(result.history):
        rows += score_rows(trial, epoch, TRAINING, running, names, trained)
        if validated is not None:
            rows += score_rows(trial, epoch, VALIDATION, validated, names, evaluated[VALIDATION])
    rows.append(selected_row(trial, result.selected))
    for split, scores in once.items():
        rows += score_rows(trial, result.selected, split, scores, names, evaluated[split])
    return rows


def _name_absent(class_names, wanted: set[int], trained: set[int], present: dict) -> None:
    """Log the classes without a photo; the same message appears only once per run."""
    absent = [repr(class_names[label]) for label in sorted(wanted - trained)]
    if absent:
        log.warning(
            "no training photo of %s: never predicted, and left out of the mean accuracy",
            ", ".join(absent),
        )
    for split, labels in present.items():
        absent = [repr(class_names[label]) for label in sorted(trained - labels)]
        if absent:
            log.warning(
                "no %s photo of %s: left out of its mean accuracy", split.lower(), ", ".join(absent)
            )
