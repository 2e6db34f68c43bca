"""Names under output/, writes that are whole or absent, config.json."""

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from semantic_aug import UserError, stable_hash
from semantic_aug.experiment.config import (
    check_config,
    config_id,
    git_revision,
    read_config,
    versions,
    write_config,
)
from semantic_aug.experiment.files import (
    atomic_folder,
    atomic_path,
    check_writable,
    remove_leftovers,
    write_text,
)
from semantic_aug.experiment.names import (
    RESERVED_NAMES,
    Trial,
    aug_dir,
    check_component,
    experiment_dir,
    fine_tuned_dir,
    folder_names,
    merged_file,
)

patient = settings(deadline=None, max_examples=60)  # slow is no failure

ODD_NAMES = [
    "", " ", ".", "..", "...", "/", "\\", "a/b", "a\\b", "../../etc", "/root", "C:\\x", "~", "a\0b",
    "con", "a.", ".hidden", "stop sign", "stop_sign", "Stop Sign", "STOP SIGN", " stop sign ",
    "stop\nsign", "stop\u00a0sign", "e\u0301", "\u00e9", "\u0130", "i\u0307", "\u00df", "ss", "SS",
    "\u1e9e", "x" * 300, "x" * 301, "\u00e4" * 200, "\U0001f600" * 100, "caf\udce9", "a-2", "a",
    "A", "*", "?", '"', "<b>", "|", ":", "_", "\u202eabc", "\u03a3\u03a3", "\u03c3\u03c2",
]  # fmt: skip
names = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(ODD_NAMES)), max_size=12)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- names -----------------------------------------------------------------------------------


def test_layout_of_an_experiment():
    experiment, trial = experiment_dir("output", "mvip-test"), Trial(3, 16)
    assert experiment == Path("output/mvip-test")
    assert aug_dir(experiment, "aug", trial) == Path("output/mvip-test/aug/seed=3_ex=16")
    assert fine_tuned_dir(experiment, trial) == Path("output/mvip-test/fine-tuned/seed=3_ex=16")
    merged = Path("output/mvip-test/fine-tuned-merged/seed=3_ex=16.safetensors")
    assert merged_file(experiment, trial) == merged


@pytest.mark.parametrize("name", ["demo", "a/b", "exp 1", "été", "a.b", "...", "~"])
def test_experiment_names_that_stay_inside(name, tmp_path):
    folder = experiment_dir(tmp_path, name)
    folder.mkdir(parents=True)
    assert folder.resolve().is_relative_to(tmp_path.resolve())
    assert folder.resolve() != tmp_path.resolve()


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "./", "..", "../x", "a/../..", "a/..", "/", "/tmp/x", "a\\b", "..\\x", "C:\\x",
     "a\0", "a\nb", "caf\udce9"],
)  # fmt: skip
def test_experiment_names_that_do_not(name):
    with pytest.raises(UserError, match=r"--experiment_name: got .*inside output/"):
        experiment_dir("output", name)


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "/a", "a\\b", "a:b", "a*", "a\tb", 'a"b', "caf\udce9"]
)
def test_aug_name_is_one_folder(name):
    with pytest.raises(UserError, match=r"--aug_name: got .*one folder name"):
        aug_dir(Path("e"), name, Trial(0, 1))


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_aug_name_is_no_other_stage_s(name):
    with pytest.raises(UserError, match=f"--aug_name: '{name}' is the name of another stage"):
        aug_dir(Path("e"), name, Trial(0, 1))


def test_reserved_names_hold_all_other_folders():
    assert {"fine-tuned", "fine-tuned-merged", "results", "report", "logs"} <= set(RESERVED_NAMES)
    assert check_component("--method", "results") == "results"  # only where it is reserved


@patient
@given(names)
@example(ODD_NAMES)
@example(ODD_NAMES[::-1])
@example(["a", "A", "a-2", "A-2", "a-2-2"])
def test_folder_names_are_unique_components(class_names):
    folders = folder_names(class_names)
    assert list(folders) == list(dict.fromkeys(class_names))
    assert len({name.casefold() for name in folders.values()}) == len(folders)
    for folder in folders.values():
        assert folder not in ("", ".", "..")
        assert not re.search(r'[/\\:*?"<>|\s\x00-\x1f]', folder)
        assert not folder.startswith(".") and not folder.endswith(".")
        assert len(folder.encode()) < 200
        assert unicodedata.is_normalized("NFC", folder) or len(folder.encode()) > 100


@patient
@given(names)
@example(ODD_NAMES)
def test_files_of_every_class_lie_inside_the_trial(class_names):
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "root")
        for number, folder in enumerate(folder_names(class_names).values()):
            write_text(root / folder / "learned_embeds.safetensors", str(number))
        files = sorted(root.rglob("learned_embeds.safetensors"))
        assert len(files) == len(set(class_names))
        assert all(file.parent.parent == root for file in files)
        assert listing(Path(temporary)) in (["root"], [])


@patient
@given(names, st.data())
def test_folder_of_a_class_does_not_depend_on_what_follows(class_names, data):
    cut = data.draw(st.integers(0, len(class_names)))
    whole, part = folder_names(class_names), folder_names(class_names[:cut])
    assert part == {name: whole[name] for name in part}


def test_names_that_would_meet_get_a_number_in_the_order_given():
    assert folder_names(["stop sign", "stop_sign", "Stop Sign", "stop_sign-2"]) == {
        "stop sign": "stop_sign",
        "stop_sign": "stop_sign-2",
        "Stop Sign": "Stop_Sign-3",
        "stop_sign-2": "stop_sign-2-2",
    }
    assert folder_names(["e\u0301", "\u00e9"]) == {"e\u0301": "\u00e9", "\u00e9": "\u00e9-2"}


def test_long_names_keep_their_beginning_and_stay_apart():
    first, second = folder_names(["x" * 300, "x" * 299 + "y"]).values()
    assert first.startswith("x" * 100 + "-") and second.startswith("x" * 100 + "-")
    assert first != second


def test_a_folder_that_can_be_made_is_taken_and_not_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("", "a", "a/b", "link/a"):
        assert check_writable(tmp_path / name) == tmp_path / name
    assert listing(tmp_path) == ["link"]


@pytest.mark.parametrize("name", ["file", "itself", "nowhere"])
@pytest.mark.parametrize("below", ["", "e/results"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, name, below):
    (tmp_path / "file").touch()
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "nowhere").symlink_to("absent")
    reason = "file" if name == "file" else "link that leads nowhere"
    with pytest.raises(UserError, match=f"cannot be a folder: {tmp_path / name} is a {reason}"):
        check_writable(tmp_path / name / below)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that nobody writes to")
def test_a_folder_that_nobody_may_write_to(tmp_path):
    with pytest.raises(UserError, match=r"^/proc cannot be written to \(.+\): choose another"):
        check_writable(Path("/proc/x/results"))


# --- stable_hash -----------------------------------------------------------------------------


def test_stable_hash_never_changes():
    assert stable_hash("job", 0, "cat/0.png", 1) == 950779603186063802
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert stable_hash(1) == stable_hash("1")


@patient
@given(st.lists(st.one_of(st.text(), st.integers()), max_size=4))
def test_stable_hash_seeds_a_generator(parts):
    import torch

    value = stable_hash(*parts)
    assert 0 <= value < 2**63
    assert torch.Generator().manual_seed(value).initial_seed() == value


# --- whole or absent -------------------------------------------------------------------------


def test_atomic_path_publishes_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".file.txt.") and temporary.name.endswith(".tmp")
    assert path.read_text() == "content"
    assert listing(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_path_keeps_the_old_file_on_errors(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_threads_of_one_process_may_write_one_file_at_once(tmp_path):
    path = tmp_path / "file.txt"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # renamed last
    assert listing(tmp_path) == ["file.txt"]


def test_atomic_path_without_a_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        pass
    assert listing(tmp_path) == []


def temporary_name(path: Path) -> str:
    with pytest.raises(InterruptedError), atomic_path(path) as temporary:
        raise InterruptedError
    return temporary.name


def of_process(name: str, pid: int) -> str:
    return re.sub(r"-\d+\.tmp$", f"-{pid}.tmp", name)


@pytest.fixture
def leave(tmp_path):
    """Leave a temporary file, of this host's process `pid` or with another name."""

    def leave(pid=None, name=None, age=0.0):
        name = name or of_process(temporary_name(tmp_path / "000000-000.png"), pid)
        path = tmp_path / name
        path.write_text("half")
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
        return path

    return leave


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_processes_go(tmp_path, leave):
    left = [leave(dead_process()), leave(os.getpid()), leave(10**30)]
    remove_leftovers(tmp_path)
    assert [path.exists() for path in left] == [False, False, True]


def test_leftovers_of_living_processes_stay(tmp_path, leave):
    left = leave(os.getppid())
    remove_leftovers(tmp_path)
    assert left.read_text() == "half"


def test_leftovers_of_other_hosts_go_after_a_day(tmp_path, leave):
    fresh = leave(name=".000000-000.png.node_12-77.tmp")
    stale = leave(name=".000000-001.png.node_12-77.tmp", age=2 * 86400)
    remove_leftovers(tmp_path)
    assert (fresh.exists(), stale.exists()) == (True, False)


def test_other_files_are_no_leftovers(tmp_path, leave):
    kept = [
        leave(name=name, age=9 * 86400)
        for name in ("mine.tmp", ".hidden", "000000-000.png", ".a.tmp", "a.b.node-7.tmp")
    ]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".a.png.node-7.tmp").write_text("half")
    remove_leftovers(tmp_path)
    assert all(path.exists() for path in kept)
    assert (tmp_path / "below" / ".a.png.node-7.tmp").exists()
    remove_leftovers(tmp_path / "absent")  # is no error


def test_a_killed_process_leaves_what_the_next_removes(tmp_path):
    code = (
        "import os, sys; from semantic_aug.experiment.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "image.png"], cwd=ROOT)
    (left,) = listing(tmp_path)
    assert left.startswith(".image.png.") and left.endswith(".tmp")
    remove_leftovers(tmp_path)
    assert listing(tmp_path) == []


# --- config.json -----------------------------------------------------------------------------

SETTINGS = {"model": "sha256:1", "strength": [0.5], "resolution": 512, "dataset_args": []}


def test_config_holds_what_reproduces_a_result(tmp_path):
    identity = write_config(tmp_path, SETTINGS, {"device": "cuda", "path": Path("x")})
    config = read_config(tmp_path)
    assert config["id"] == identity == config_id(SETTINGS)
    assert re.fullmatch("[0-9a-f]{12}", identity)
    assert config["settings"] == SETTINGS
    assert config["arguments"] == {"device": "cuda", "path": "x"}
    assert config["versions"] == versions()
    assert {"python", "torch", "diffusers", "transformers", "numpy"} <= set(config["versions"])
    assert config["git_revision"] == git_revision()


def test_config_id_ignores_order_and_no_value():
    assert config_id(SETTINGS) == config_id(dict(reversed(SETTINGS.items())))
    assert config_id(SETTINGS) != config_id(SETTINGS | {"strength": [0.6]})


def test_same_settings_leave_config_alone(tmp_path):
    write_config(tmp_path, SETTINGS, {"device": "cpu"})
    before = (tmp_path / "config.json").stat()
    write_config(tmp_path, SETTINGS, {"device": "cuda"})
    after = (tmp_path / "config.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    write_config(tmp_path, SETTINGS | {"resolution": 256}, {})
    assert read_config(tmp_path)["settings"]["resolution"] == 256


def test_other_settings_are_refused_by_name(tmp_path):
    write_config(tmp_path, SETTINGS | {"gone": None, "old": 1}, {})
    now = SETTINGS | {"strength": [0.25, 0.5], "resolution": 256, "new": "x"}
    with pytest.raises(UserError) as refused:
        check_config(tmp_path, now, has_results=True, overwrite=False)
    message = str(refused.value)
    assert "--resolution: there 512, now 256" in message
    assert "--strength: there 0.5, now 0.25 0.5" in message
    assert "new: there none, now x" in message
    assert "old: there 1, now none" in message
    assert "model" not in message and "gone" not in message and "dataset_args" not in message
    assert "--overwrite" in message


def test_config_is_compared_as_json(tmp_path):
    write_config(tmp_path, {"pair": (1, 2), "rate": 5e-4}, {})
    check_config(tmp_path, {"pair": [1, 2], "rate": 0.0005}, has_results=True, overwrite=False)


def test_without_results_or_with_overwrite_nothing_is_refused(tmp_path):
    check_config(tmp_path, SETTINGS, has_results=False, overwrite=False)
    check_config(tmp_path, SETTINGS, has_results=True, overwrite=True)  # no config.json yet
    write_config(tmp_path, SETTINGS, {})
    other = SETTINGS | {"model": "sha256:2"}
    check_config(tmp_path, SETTINGS, has_results=True, overwrite=False)
    check_config(tmp_path, other, has_results=False, overwrite=False)
    check_config(tmp_path, other, has_results=True, overwrite=True)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '"text"', "\xff", "[" * 100_000, '{"settings": []}', '{"settings": null}',
     '{"id": 3}', '{"arguments": "x"}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_unreadable_config_is_no_config(tmp_path, caplog, content):
    assert read_config(tmp_path) is read_config(tmp_path / "absent") is None
    assert not caplog.text
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    assert read_config(tmp_path) is None
    assert f"{tmp_path / 'config.json'} is damaged: it counts as absent" in caplog.text
    assert read_config(tmp_path / "config.json") is None  # a file in place of a folder
    results = {"has_results": True, "overwrite": False}
    for ids in (None, lambda: {"0123456789ab"}, lambda: {config_id(SETTINGS), "0123456789ab"}):
        with pytest.raises(UserError, match=r"holds results, but no readable config\.json"):
            check_config(tmp_path, SETTINGS, **results, ids=ids)
    check_config(tmp_path, SETTINGS, **results, ids=lambda: {config_id(SETTINGS)})


def test_git_revision_names_a_commit():
    revision = git_revision()
    assert revision is None or re.search("[0-9a-f]{40}(-dirty)?$", revision)


def test_config_is_readable_by_people(tmp_path):
    write_config(tmp_path, SETTINGS, {})
    text = (tmp_path / "config.json").read_text()
    assert text.endswith("}\n") and text.count("\n") > 10
    assert json.loads(text)["settings"] == SETTINGS


@pytest.mark.parametrize("write", (atomic_path, atomic_folder))
def test_an_error_of_the_system_that_safetensors_hides(tmp_path, write):
    full = pytest.raises(OSError, match="No space left on device")
    with full as caught, write(tmp_path / "features"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
