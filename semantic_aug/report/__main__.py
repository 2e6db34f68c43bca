"""Show source photos beside their synthetic variants, as pages and contact sheets.

    python -m semantic_aug.report --dataset=folder --data_dir=photos --experiment_name=demo \\
        --examples_per_class 4 --aug_name aug

Writes output/EXP/report/seed=S_ex=N.html, a page for any browser, with all photos and variants,
their prompts, parameters, scores and counts; seed=S_ex=N.png, a sheet with the first photo of every
class and its variants; and seed=S_ex=N/CLASS.png, a sheet of each class. An unfinished set shows
its finished images. With --mistakes METHOD, another page, seed=S_ex=N_mistakes_METHOD.html, shows
the most confident mistakes of the classifier of these results.
"""

if __name__ == "__main__":
    from semantic_aug.experiment.interrupts import end_at_once_by_ctrl_c

    end_at_once_by_ctrl_c()

from semantic_aug import UserError
from semantic_aug.cli.command import Parser, command
from semantic_aug.experiment.files import remove_leftovers
from semantic_aug.experiment.names import CACHE, RESULTS, aug_dir, check_component
from semantic_aug.experiment.timing import seconds_per_image
from semantic_aug.settings import add_flags, build_all
from semantic_aug.settings.common import Run
from semantic_aug.settings.reporting import Reporting
from semantic_aug.stages.common import dataset_of, experiment_of, prepared, trials_of

PROG = "report.py"  # errors begin with its old file name


def parse_args(argv=None):
    parser = Parser(__doc__, prog=PROG)
    add_flags(parser, Run, Reporting)
    return parser.parse_args(argv)


@command
def main(argv=None):
    run, settings = build_all(vars(parse_args(argv)), Run, Reporting)
    # Imported late: --help needs no numpy.
    from semantic_aug.diffusion.loading import pick_device
    from semantic_aug.evaluation.classifiers import (
        classifier_folder,
        read_classifier,
        read_facts,
    )
    from semantic_aug.report.mistakes import write_mistakes
    from semantic_aug.report.page import write_page
    from semantic_aug.report.sheets import check_width, records_by_photo, write_sheets
    from semantic_aug.synthesis.records import read_left_out

    run, experiment = prepared(run), experiment_of(run)
    classifiers = {}
    if settings.mistakes:
        results = experiment / RESULTS / check_component("--mistakes", settings.mistakes)
        classifiers = {trial: classifier_folder(results, trial) for trial in trials_of(run)}
        for each in classifiers.values():
            read_facts(each)  # raises early if the classifier is missing
    for trial in trials_of(run):
        folders = {name: aug_dir(experiment, name, trial) for name in settings.aug_name}
        dataset = dataset_of(run, "train", trial)
        indices = dataset.indices(settings.classes)
        if not indices:
            raise UserError("no chosen class has a photo")
        variants = {
            name: records_by_photo(folder, dataset, indices) for name, folder in folders.items()
        }
        left_out = {name: read_left_out(folder) for name, folder in folders.items()}
        check_width(variants, settings.variants, settings.cell)
        path = experiment / "report" / f"{trial.name}.html"
        for folder in (path.parent, path.with_suffix(""), path.with_suffix("") / "photos"):
            remove_leftovers(folder)
        title = (
            f"{run.experiment_name} · seed {trial.seed}, "
            f"{trial.examples_per_class} examples per class"
        )
        seconds = {name: seconds_per_image(experiment, name, trial) for name in folders}
        write_page(
            path,
            title,
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
        print(path.with_suffix(".png"))
        print(path)
        if classifiers:
            page = path.with_name(f"{trial.name}_mistakes_{settings.mistakes}.html")
            write_mistakes(
                page,
                f"Mistakes of {settings.mistakes}: {title}",
                read_classifier(
                    classifiers[trial], pick_device(settings.device), settings.classifier_backbone
                ),
                dataset_of(run, "val"),
                dataset,
                indices,
                folders,
                variants,
                experiment / CACHE,
            )
            print(page)


if __name__ == "__main__":
    main()
