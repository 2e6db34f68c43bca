"""Flags, trials, shards, and how a command speaks and ends."""

import contextlib
import dataclasses
import errno
import logging
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from semantic_aug import UserError, counted
from semantic_aug.__main__ import COMMANDS as ALL_COMMANDS
from semantic_aug.__main__ import main as semantic_aug_main
from semantic_aug.cli.command import Parser, command
from semantic_aug.cluster.status import Showing
from semantic_aug.experiment.config import write_config
from semantic_aug.experiment.names import Trial
from semantic_aug.experiment.sharding import local_rank, shard_blocks, shard_of
from semantic_aug.settings import (
    FRACTION,
    FRACTION_BELOW_1,
    NON_NEGATIVE,
    POSITIVE,
    add_flags,
    build,
    build_all,
    fields_of,
    setting,
    settings,
    whole,
)
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Experiment, Model, Run, Selection, Sharing
from semantic_aug.settings.fine_tuning import FineTuning
from semantic_aug.settings.fitting import Fitting
from semantic_aug.settings.generation import Generation, Previewing
from semantic_aug.settings.masking import Masking
from semantic_aug.settings.merging import Merging
from semantic_aug.settings.reporting import Reporting
from semantic_aug.settings.using import Exporting, Predicting
from semantic_aug.stages.common import dataset_of, prepared, trials_of

COMMANDS = ("fine_tune", "fine_tune_upstream", "aggregate_embeddings")
SHARED = (Run, Selection, Model, Sharing)  # the settings that several commands have
SETTINGS_OF = {
    "fit": (Fitting,),
    "fine-tune": (Run, FineTuning),
    "aggregate": (Experiment, Merging),
    "generate": (Run, Generation, Previewing),
    "train-classifier": (Run, Classification),
    "predict": (Predicting,),
    "export": (Exporting,),
    "masks": (Masking,),
    "report": (Run, Reporting),
    "status": (Showing,),
}


@pytest.fixture
def parser():
    parser = Parser("A command.\n\n    with a line to paste")
    add_flags(parser, *SHARED)
    return parser


REQUIRED = ["--experiment_name=e", "--dataset=folder"]


def run_of(parser, *argv) -> Run:
    return build_all(vars(parser.parse_args([*REQUIRED, *argv])), *SHARED)[0]


# --- datasets --------------------------------------------------------------------------------


def test_an_experiment_keeps_the_list_of_photos_it_was_begun_with(parser, workdir, photos):
    (photos / "train" / "cat" / "session2").mkdir()
    (photos / "train" / "cat" / "0.png").rename(photos / "train" / "cat" / "session2" / "0.png")

    def photos_of(*argv):
        run = prepared(run_of(parser, f"--data_dir={photos}", *argv))
        return len(dataset_of(run, "train")), run.older_list

    def begun(folder, **arguments):
        (workdir / "output" / folder).mkdir(parents=True)
        write_config(workdir / "output" / folder, {"photos": "x"}, arguments)

    assert photos_of() == (9, False)
    begun("e/aug/seed=0_ex=1", dataset="folder", older_list=False)  # as commands note it
    begun("e/results/other", dataset="mymodule:Mine")  # of other photos
    (workdir / "output" / "e" / "results" / "torn").mkdir()
    (workdir / "output" / "e" / "results" / "torn" / "config.json").write_text('{"arguments"')
    assert photos_of() == (9, False)
    for stage in ("fine-tuned/seed=0_ex=1", "aug/seed=0_ex=1", "results/real"):
        begun(f"{stage.split('/')[0]}/{stage}", dataset="folder")  # by an earlier version
        assert photos_of(f"--experiment_name={stage.split('/')[0]}") == (8, True)
    # Whatever is made there later keeps to it, and says so.
    begun("new/aug/seed=0_ex=1", dataset="folder", older_list=True)
    assert photos_of("--experiment_name=new") == (8, True)
    # Nothing is chosen where a person has chosen.
    assert photos_of("--experiment_name=new", "--dataset_args", "older_list=false") == (9, None)


# --- parsing ---------------------------------------------------------------------------------


def test_hyphenated_flags_mean_the_same(parser):
    args = parser.parse_args(
        ["--experiment-name", "a-b", "--dataset=my-module:My", "--examples-per-class", "2", "4",
         "--dataset-args", "masks=my-masks", "--class-name", "stop-sign", "--model-path=x-y/z-1"]
    )  # fmt: skip
    assert args.experiment_name == "a-b"
    assert args.dataset == "my-module:My"
    assert args.examples_per_class == [2, 4]
    assert args.dataset_args == ["masks=my-masks"]
    assert args.classes == ["stop-sign"]
    assert args.model == "x-y/z-1"


def test_value_behind_equals_keeps_its_hyphens(parser):
    args = parser.parse_args([*REQUIRED, "--data-dir=--my-data"])
    assert args.data_dir == "--my-data"


def test_arguments_need_not_be_texts(parser, tmp_path):
    args = parser.parse_args([*REQUIRED, "--data_dir", tmp_path, "--seed", 3])
    assert (args.data_dir, args.seed) == (str(tmp_path), 3)


def test_defaults(parser):
    args = parser.parse_args(REQUIRED)
    assert trials_of(run_of(parser)) == [Trial(0, 1)]
    assert args.output_dir == "output"
    assert args.classes is None
    assert shard_of(args.shard_index, args.num_shards, {}) == (0, 1)


@pytest.mark.parametrize(
    "argv, named",
    [
        ([*REQUIRED, "--no_such_flag", "1"], "--no_such_flag"),
        ([*REQUIRED, "--exam", "1"], "--exam"),  # no abbreviations
        ([*REQUIRED, "--examples_per_class", "0"], "whole number from 1, got '0'"),
        ([*REQUIRED, "--examples_per_class", "two"], "whole number from 1, got 'two'"),
        ([*REQUIRED, "--examples_per_class"], "--examples_per_class"),
        ([*REQUIRED, "--data_dir", ""], "--data_dir is empty"),
        ([*REQUIRED, "--data-dir=x", "--data-dir="], "--data-dir is empty"),
        ([*REQUIRED, "--model_path", ""], "--model_path is empty"),
        ([*REQUIRED, "--pretrained-model-name-or-path="], "--pretrained-model-name-or-path is"),
        ([*REQUIRED, "--num_trials", "3000000000"], "1000000000 at most, got '3000000000'"),
        ([*REQUIRED, "--seed", "1" + 20 * "0"], "4611686018427387904 at most"),
        ([*REQUIRED, "--seed", 5000 * "1"], "whole number from 0, got"),
        ([*REQUIRED, "--resolution=1000000"], "8192 at most, got '1000000'"),
        ([*REQUIRED, "--seed=-1"], "whole number from 0, got '-1'"),
        ([*REQUIRED, "--shard_index=-1", "--num_shards=2"], "whole number from 0, got '-1'"),
        (["--dataset=folder"], "--experiment_name"),
        ([*REQUIRED, "extra"], "extra"),
    ],
)
def test_wrong_flags_are_one_line_and_status_2(parser, capsys, argv, named):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(argv)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert named in err
    assert "--help" in err


def test_help_names_defaults_and_keeps_lines(parser, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--help_all"])
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "A command. with a line to paste" in text
    assert "folder of all experiments (default output)" in text
    assert "labelled photos per class (default 1)" in text
    assert text.count("(default: the fastest)") == 1  # without a second default after it
    assert "default False" not in text


def test_help_leaves_out_rare_flags_and_details():
    @settings()
    class Few:
        common: int = setting(3, "gist, with a unit; more of it (default: three)", choices=(3, 4))
        names: tuple[str, ...] = setting((), "names of it", flags=("--names", "--other_names"))
        rare: float = setting(0.5, "a share; no gist", check=FRACTION, rare=True)

    parser = Parser("")
    add_flags(parser, Few)
    lines = [" ".join(line.split()) for line in parser.format_help().splitlines()]
    assert "--common 3|4 gist, with a unit (default: three)" in lines
    assert "--names NAMES ... names of it" in lines
    assert lines[-1] == "--help_all shows 1 more flag, and more of each."
    lines = [" ".join(line.split()) for line in parser.format_help(whole=True).splitlines()]
    assert "--common 3|4 gist, with a unit; more of it (default: three)" in lines
    assert "--names, --other_names NAMES ..." in lines
    assert lines[-1] == "--rare X a share; no gist (default 0.5)"


@pytest.mark.parametrize("name", list(ALL_COMMANDS))
def test_help_fits_two_screens_and_help_all_has_every_flag(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["semantic-aug"])

    def said(flag: str) -> str:
        with pytest.raises(SystemExit) as ended:
            semantic_aug_main([name, flag])
        assert ended.value.code == 0
        return capsys.readouterr().out

    assert said("--help").count("\n") <= 100
    found = set(re.findall(r"--\w+", said("--help_all")))
    for cls in SETTINGS_OF.get(name, ()):
        for setting_name, field in fields_of(cls).items():
            flags = field.metadata["flags"] or (f"--{setting_name}",)
            assert {*flags, *(field.metadata["shorthand"] or ())} <= found


@settings()
class Values:
    """A setting of every kind of number."""

    positive_int: int = setting(1, "", check=whole(1))
    some: int = setting(8, "", check=whole(8, 64))
    non_negative_int: int = setting(0, "", check=whole(0))
    non_negative: float = setting(0.0, "", check=NON_NEGATIVE)
    positive: float = setting(1.0, "", check=POSITIVE)
    fraction: float = setting(0.0, "", check=FRACTION)
    fraction_below_1: float = setting(0.0, "", check=FRACTION_BELOW_1)


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("positive_int", {"1": 1, "12": 12}, ["0", "-1", "1.5", "", "x", "nan", "1000000001"]),
        ("some", {"8": 8, "64": 64}, ["7", "65", "1e1"]),
        ("non_negative_int", {"0": 0, "3": 3}, ["-1", "0.5", "x"]),
        ("non_negative", {"0": 0.0, "5e-4": 0.0005}, ["-1e-9", "nan", "inf", "1e999", "x"]),
        ("positive", {"1e-9": 1e-9, "2": 2.0}, ["0", "-1", "nan", "inf", "x"]),
        ("fraction", {"0": 0.0, "0.5": 0.5, "1": 1.0}, ["-0.1", "1.1", "nan", "inf", "x"]),
        ("fraction_below_1", {"0": 0.0, "0.999": 0.999}, ["1", "-0.1", "nan"]),
    ],
)
def test_numbers_are_checked_as_flags_and_as_keywords(capsys, name, good, bad):
    parser = Parser("")
    add_flags(parser, Values)
    for text, value in good.items():
        found = vars(parser.parse_args([f"--{name}={text}"]))
        assert (found[name], type(found[name])) == (value, type(value))
        assert build(Values, found) == build(Values, {name: value})
        assert getattr(build(Values, {name: value}), name) == value
    for text in bad:
        with pytest.raises(SystemExit):
            parser.parse_args([f"--{name}={text}"])
        assert re.search(rf"--{name}: expected .* got {text!r}", capsys.readouterr().err)
        for value in {text, as_number(text)}:
            with pytest.raises(UserError, match=f"^{name}: got {re.escape(repr(value))}, expected"):
                build(Values, {name: value})


def as_number(text: str) -> int | float | str:
    """`text` as Python would be given it, as it is where it is no number."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


# --- trials and shards -----------------------------------------------------------------------


def test_trials_are_seeds_times_examples(parser):
    run = run_of(parser, "--seed=3", "--num_trials=2", "--examples_per_class", "4", "1", "4")
    assert trials_of(run) == [Trial(3, 4), Trial(3, 1), Trial(4, 4), Trial(4, 1)]


def test_more_trials_than_anybody_runs_are_refused_before_they_are_listed(parser):
    run = run_of(parser, "--num_trials=1000000000", "--examples_per_class=1")
    with pytest.raises(UserError, match=r"--num_trials: got 1000000000 for 1 number of examples"):
        trials_of(run)
    run = run_of(parser, "--num_trials=25000", "--examples_per_class", *"12344")
    assert len(trials_of(run)) == 100_000
    run = dataclasses.replace(run, examples_per_class=(*run.examples_per_class, 5))
    with pytest.raises(UserError, match=r"for 5 numbers of examples .* 100000 trials at most"):
        trials_of(run)


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "photo", "0 photos"), (1, "photo", "1 photo"), (2, "photo", "2 photos"),
     (1, "class", "1 class"), (3, "class", "3 classes")],
)  # fmt: skip
def test_numbers_of_things(number, noun, text):
    assert counted(number, noun) == text


def shard(*argv, **environ):
    parser = Parser("")
    add_flags(parser, Sharing)
    args = parser.parse_args(argv)
    return shard_of(args.shard_index, args.num_shards, environ)


def test_shard_from_flags_beats_the_environment():
    assert shard("--shard_index=1", "--num_shards=3") == (1, 3)
    slurm = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MAX": "9", "WORLD_SIZE": "4"}
    assert shard("--shard_index=0", "--num_shards=2", **slurm) == (0, 2)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--shard_index=0"], "go together"),
        (["--num_shards=2"], "go together"),
        (["--shard_index=2", "--num_shards=2"], "got 2, expected 0 to 1"),
    ],
)
def test_flags_of_shards_that_do_not_fit(argv, message):
    with pytest.raises(UserError, match=message):
        shard(*argv)


def test_no_shard_is_below_0():
    with pytest.raises(UserError, match="got -1, expected 0 to 1"):
        shard_of(-1, 2, {})


def slurm_array(ids, **more):
    """The shard of every task of an array, from what SLURM tells each of them."""
    step = ids[1] - ids[0] if len(ids) > 1 else 1
    common = {
        "SLURM_ARRAY_TASK_MIN": str(min(ids)),
        "SLURM_ARRAY_TASK_MAX": str(max(ids)),
        "SLURM_ARRAY_TASK_STEP": str(step),
        **more,
    }
    return [shard(**common, SLURM_ARRAY_TASK_ID=str(number)) for number in ids]


@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 2, 3], [10, 11, 12], [0, 4, 8], [7, 10, 13]])
@pytest.mark.parametrize("with_count", [True, False])
def test_slurm_arrays_of_any_offset_and_step(ids, with_count):
    more = {"SLURM_ARRAY_TASK_COUNT": "3"} if with_count else {}
    assert slurm_array(ids, **more) == [(0, 3), (1, 3), (2, 3)]


def test_slurm_array_of_one_task():
    assert slurm_array([6], SLURM_ARRAY_TASK_COUNT="1") == [(0, 1)]


def test_slurm_array_with_gaps_would_lose_work():
    environ = {
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "4",
        "SLURM_ARRAY_TASK_STEP": "1",
        "SLURM_ARRAY_TASK_COUNT": "3",
    }
    for number in ("0", "1", "4"):
        with pytest.raises(UserError, match="gaps between its tasks 0 and 4"):
            shard(**environ, SLURM_ARRAY_TASK_ID=number)


def test_processes_of_one_launch():
    assert [shard(WORLD_SIZE="2", RANK=str(rank)) for rank in range(2)] == [(0, 2), (1, 2)]
    assert shard(WORLD_SIZE="1", RANK="0") == (0, 1)


def test_launch_within_an_array_gives_every_process_its_own_share():
    shards = {
        pair for rank in range(2) for pair in slurm_array([3, 5, 7], WORLD_SIZE="2", RANK=str(rank))
    }
    assert shards == {(index, 6) for index in range(6)}


@pytest.mark.parametrize(
    ("size", "rank"),
    [
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ],
)
def test_other_launchers(size, rank):
    assert [shard(**{size: "3", rank: str(n)}) for n in range(3)] == [(0, 3), (1, 3), (2, 3)]
    assert shard(**{size: "1", rank: "0"}) == (0, 1)
    # A launcher that srun starts on each node counts its processes on all of them.
    assert shard(**{size: "2", rank: "1"}, WORLD_SIZE="8", RANK="6") == (6, 8)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "7"}, "WORLD_SIZE=2 and RANK=7, expected RANK from 0 to 1"),
        ({"PMI_SIZE": "3", "PMI_RANK": "3"}, "PMI_SIZE=3 and PMI_RANK=3, expected PMI_RANK from 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and RANK=None"),  # half of the work would be nobody's
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE='two', expected a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "5"},
         "SLURM_ARRAY_TASK_ID=1, and the array's tasks are 2 to 5 in steps of 1"),
        ({"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "5"},
         "SLURM_ARRAY_TASK_ID=6, and"),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "4", "SLURM_ARRAY_TASK_STEP": "2"},
         "0 to 4 in steps of 2"),
    ],
)  # fmt: skip
def test_ranks_that_there_cannot_be(environ, message):
    with pytest.raises(UserError, match=message):
        shard(**environ)


SRUN = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 0),
        (SRUN, 1),
        ({"PMI_SIZE": "8", "PMI_RANK": "6", "MPI_LOCALRANKID": "2"}, 2),
        ({"PMI_SIZE": "8", "PMI_RANK": "6", "PMI_LOCAL_RANK": "2"}, 2),
        ({"PMI_SIZE": "8", "PMI_RANK": "5", **SRUN}, 1),  # srun --mpi=pmi2
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3",
          "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, 1),
        ({"WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3", **SRUN}, 3),  # torchrun in srun
        ({"WORLD_SIZE": "8", "RANK": "5", **SRUN}, 1),  # set by hand, as scripts for srun do
        ({"PMI_SIZE": "8", "PMI_RANK": "6"}, 6),  # no rank on the node is known
        # mpirun in a batch script, which is a step of one process itself, and in srun.
        ({"PMI_SIZE": "4", "PMI_RANK": "3", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0",
          "SLURM_LOCALID": "0"}, 3),
        ({"PMI_SIZE": "4", "PMI_RANK": "3", **SRUN, "SLURM_STEP_NUM_TASKS": "2"}, 3),
        ({"LOCAL_RANK": "2"}, 2),
    ],
)  # fmt: skip
def test_the_rank_on_this_machine(environ, expected):
    assert local_rank(environ) == expected


def test_a_launch_of_one_process_says_so(caplog):
    launched = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    assert shard(**launched) == (0, 1)
    assert "accelerate launch --multi_gpu --num_processes N starts N" in caplog.text
    caplog.clear()
    assert shard(**launched, PMI_SIZE="2", PMI_RANK="1") == (1, 2)
    assert shard() == (0, 1)
    assert not caplog.text


def test_blocks_of_several_trials_are_dealt_out_as_one_pack():
    """Three blocks each of 8 trials for 4 shards: six each, and not always the first three's."""
    counts = [
        sum(len(shard_blocks(3, index, 4, already=3 * trial)) for trial in range(8))
        for index in range(4)
    ]
    assert counts == [6, 6, 6, 6]
    for trial in range(8):
        shares = [shard_blocks(3, index, 4, already=3 * trial) for index in range(4)]
        assert sorted(block for share in shares for block in share) == [0, 1, 2]


# --- how a command ends ----------------------------------------------------------------------


def run(action, capsys):
    """Exit status, stdout and stderr of a command that does `action`."""

    @command
    def main(argv=None):
        return action()

    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()


def raises(error):
    def action():
        raise error

    return action


def test_user_error_is_one_line_and_status_2(capsys):
    status, out, err = run(raises(UserError("what was got,\n  and   what to do")), capsys)
    assert (status, out) == (2, "")
    assert err == "test_cli.py: error: what was got, and what to do\n"


@pytest.mark.parametrize("words", [["status", "nowhere"], ["status", "nowhere", "--bad"],
                                   ["predict", "nowhere", "x.png"], ["predict", "--bad"],
                                   ["run", "--bad"], ["report", "--bad"]])  # fmt: skip
def test_errors_name_the_command_as_it_was_called(workdir, capsys, words):
    with pytest.raises(SystemExit) as end:
        semantic_aug_main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"semantic-aug {words[0]}: error: ")


def test_interruption_says_how_to_go_on(capsys):
    status, _, err = run(raises(KeyboardInterrupt()), capsys)
    assert status == 130
    assert err == "interrupted; the same command goes on from what is written\n"


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room and run the same command again"),
        (errno.EDQUOT, "make room and run the same command again"),
        (errno.EROFS, "choose a place that can be written to, such as another --output_dir"),
        (errno.EACCES, "choose a place that you may write to, such as another --output_dir"),
        (errno.ENOTDIR, "a file lies where a folder is needed"),
        (errno.ELOOP, "a link leads to itself"),
    ],
)
def test_an_error_of_the_system_is_one_line(capsys, number, remedy):
    status, _, err = run(raises(OSError(number, "reason", "output/x.png")), capsys)
    assert status == 2
    assert err == f"test_cli.py: error: output/x.png: reason; {remedy}\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken disk"), ValueError("a bug")])
def test_mistakes_of_the_program_are_not_hidden(error):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main()


def test_result_and_status_pass_through(capsys):
    assert run(lambda: "anything", capsys) == (0, "", "")
    assert run(raises(SystemExit(1)), capsys) == (1, "", "")


def test_notices_are_printed_once(capsys):
    log = logging.getLogger("semantic_aug.some_module")

    def speak():
        for _ in range(3):
            log.warning("no %s weights", "fp16")
        log.info("cat: finished already")
        log.debug("not shown")

    status, out, err = run(speak, capsys)
    assert (status, out) == (0, "")
    assert err == "no fp16 weights\ncat: finished already\n"
    _, _, again = run(speak, capsys)
    assert again == err  # once for each command


def test_nothing_is_left_of_a_command_s_notices(capsys):
    logger = logging.getLogger("semantic_aug")
    before = (list(logger.handlers), logger.level, logger.propagate)
    run(raises(UserError("x")), capsys)
    assert (list(logger.handlers), logger.level, logger.propagate) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_know_their_flags(name, capsys):
    module = __import__(name)
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"python {name.removesuffix('_upstream')}.py" in out
    assert "--experiment_name" in out


def test_wrong_flag_in_a_real_process():
    done = subprocess.run(
        [sys.executable, ROOT / "aggregate_embeddings.py", "--experiment_name=e", "--unknown=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "aggregate_embeddings.py: error: unrecognized arguments: --unknown=1 (--help lists the "
        "flags)"
    ]
