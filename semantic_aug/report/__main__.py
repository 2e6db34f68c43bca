"""Show source photos beside their synthetic variants, as pages and contact sheets.

    python -m semantic_aug.report --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --aug_name aug

Writes output/EXP/report/seed=S_ex=N.html, a page for any browser, with all photos and variants,
their prompts, parameters, scores and counts; seed=S_ex=N.png, a sheet with the first photo of every
class and its variants; and seed=S_ex=N/CLASS.png, a sheet of each class. An unfinished set shows
its finished images.

With --mistakes METHOD, the page is seed=S_ex=N_mistakes_METHOD.html instead: the most confident
mistakes of this method's classifier, beside the nearest photos and images of its training.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from collections.abc import Iterable, Iterator
from pathlib import Path

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.files import remove_leftovers
from semantic_aug.experiment.names import CACHE, RESULTS, Trial, aug_dir, check_component
from semantic_aug.experiment.timing import seconds_per_image
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.common import Run
from semantic_aug.settings.reporting import Reporting
from semantic_aug.stages.common import dataset_of, experiment_of, prepared, trials_of

PROG = "report.py"  # errors begin with its old file name
# Functions import late: --help needs no numpy.


def parse_args(argv=None):
    parser = Parser(__doc__, prog=PROG, usage="python -m semantic_aug.report --flag value ...")
    add_flags(parser, Run, Reporting)
    return parser.parse_args(argv)


@command
def main(argv=None):
    run, settings = build_all(vars(parse_args(argv)), Run, Reporting)
    run = prepared(run)
    for path in (
        write_mistakes_pages(run, settings) if settings.mistakes else write_pages(run, settings)
    ):
        print(path)


def write_pages(run: Run, settings: Reporting) -> Iterator[Path]:
    """The sheet and the page of each trial."""
    from semantic_aug.report.page import write_page
    from semantic_aug.report.sheets import check_width, write_sheets
    from semantic_aug.synthesis.records import read_left_out

    experiment = experiment_of(run)
    for trial in trials_of(run):
        dataset, indices, folders, variants = pictures_of(run, settings, trial, settings.aug_name)
        left_out = {name: read_left_out(folder) for name, folder in folders.items()}
        check_width(variants, settings.variants, settings.cell)
        path = report_file(experiment, trial)
        for folder in (path.parent, path.with_suffix(""), path.with_suffix("") / "photos"):
            remove_leftovers(folder)
        seconds = {name: seconds_per_image(experiment, name, trial) for name in folders}
        write_page(
            path,
            title_of(run, trial),
            dataset,
            indices,
            folders,
            variants,
            left_out,
            settings.embed,
            settings.near_duplicate,
            seconds,
        )
        write_sheets(
            path.with_suffix(""),
            dataset,
            indices,
            folders,
            variants,
            left_out,
            settings.variants,
            settings.cell,
        )
        yield path.with_suffix(".png")
        yield path


def write_mistakes_pages(run: Run, settings: Reporting) -> Iterator[Path]:
    """The page of mistakes of each trial; missing parts raise an error before the first page."""
    from semantic_aug.diffusion.loading import pick_device
    from semantic_aug.evaluation.classifiers import classifier_folder, read_classifier, read_facts
    from semantic_aug.report.mistakes import write_mistakes

    experiment = experiment_of(run)
    results = experiment / RESULTS / check_component("--mistakes", str(settings.mistakes))
    classifiers = {trial: classifier_folder(results, trial) for trial in trials_of(run)}
    sets = {
        t: read_facts(folder)["training"]["aug_name"] or () for t, folder in classifiers.items()
    }
    validation = dataset_of(run, "val")
    pictures = {trial: pictures_of(run, settings, trial, sets[trial]) for trial in classifiers}
    for trial, folder in classifiers.items():
        path = report_file(experiment, trial)
        train, indices, folders, variants = pictures[trial]
        path = path.with_name(f"{trial.name}_mistakes_{settings.mistakes}.html")
        write_mistakes(
            path,
            f"Mistakes of {settings.mistakes}: {title_of(run, trial)}",
            read_classifier(folder, pick_device(settings.device), settings.classifier_backbone),
            validation,
            train,
            indices,
            folders,
            variants,
            experiment / CACHE,
        )
        yield path


def pictures_of(run: Run, settings: Reporting, trial: Trial, sets: Iterable[str]) -> tuple:
    """The photos of a trial, the indices of the shown photos; folders and records by set.

    Raises:
        UserError: there are no photos.
    """
    from semantic_aug.report.sheets import records_by_photo

    folders = {name: aug_dir(experiment_of(run), name, trial) for name in sets}
    dataset = dataset_of(run, "train", trial)
    indices = dataset.indices(settings.classes)
    if not indices:
        raise UserError("no chosen class has a photo")
    found = {name: records_by_photo(folder, dataset, indices) for name, folder in folders.items()}
    return dataset, indices, folders, found


def report_file(experiment: Path, trial: Trial) -> Path:
    return experiment / "report" / f"{trial.name}.html"


def title_of(run: Run, trial: Trial) -> str:
    return (
        f"{run.experiment_name} · seed {trial.seed}, {trial.examples_per_class} examples per class"
    )


if __name__ == "__main__":
    main()
