"""sha256 of whole files: every byte counts, and what is remembered is never out of date."""

import hashlib
import json
import os

import pytest

from semantic_aug.experiment import digests
from semantic_aug.experiment.digests import file_digests, sha256_file
from semantic_aug.experiment.files import hostname

LONG_AGO = 1_500_000_000
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps what was quick to hash too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(digests, "KEEP_FROM", 0)
    return tmp_path / "xdg" / "semantic_aug" / "sha256"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data" / "weights"
    path.parent.mkdir()
    path.write_bytes(b"abc")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def forbid_hashing(monkeypatch):
    def fail(path):
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr(digests, "sha256_file", fail)


def test_every_byte_counts(tmp_path):
    contents = [bytes(5_000_000), bytes(2_500_000) + b"\1" + bytes(2_499_999), b"abc", b""]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    paths = [tmp_path / str(number) for number in (3, 0, 2, 1)]
    expected = [hashlib.sha256(contents[number]).hexdigest() for number in (3, 0, 2, 1)]
    assert file_digests(paths) == expected and len(set(expected)) == 4
    assert sha256_file(tmp_path / "2") == ABC


def test_a_file_is_hashed_once(cache, file, monkeypatch):
    assert file_digests([file]) == [ABC]
    forbid_hashing(monkeypatch)
    assert file_digests([file, str(file)]) == [ABC, ABC]


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_changed_file_is_hashed_again(cache, file, change):
    file_digests([file])
    if change == "content":
        file.write_bytes(b"abcd")
        os.utime(file, (LONG_AGO, LONG_AGO))
    elif change == "time":
        file.write_bytes(b"abd")
        os.utime(file, (LONG_AGO, LONG_AGO + 1))
    else:  # renamed into its place, as most programs write
        other = file.with_name("other")
        other.write_bytes(b"xyz")
        os.utime(other, (LONG_AGO, LONG_AGO))
        other.replace(file)
    assert file_digests([file]) == [hashlib.sha256(file.read_bytes()).hexdigest()]


def test_a_file_that_may_still_change_is_not_remembered(cache, file):
    file.write_bytes(b"abd")  # the clock of its file system may not tell the next change apart
    file_digests([file])
    assert json.loads(next(cache.iterdir()).read_text()) == {}


def test_what_is_quick_to_hash_leaves_nothing(cache, file, monkeypatch):
    monkeypatch.setattr(digests, "KEEP_FROM", 60)
    assert file_digests([file]) == [ABC] and not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"weights": 3}', '{"weights": [3, 1, 2, "x"]}'])
def test_a_damaged_memory_is_none(cache, file, content):
    file_digests([file])
    (place,) = cache.iterdir()
    place.write_text(content)
    assert file_digests([file]) == [ABC]
    assert list(json.loads(place.read_text())) == ["weights"]


def test_what_a_killed_process_left_half_written_goes(cache, file):
    cache.mkdir(parents=True)
    (cache / f".x.json.{hostname()}-999999999.tmp").write_text("half")
    file_digests([file])
    assert [path.suffix for path in cache.iterdir()] == [".json"]


def test_without_a_place_for_it_nothing_is_remembered(file, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # a file in the way
    monkeypatch.setattr(digests, "KEEP_FROM", 0)
    assert file_digests([file]) == [ABC]


def test_what_cannot_be_read_says_why(cache, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = file_digests([tmp_path / "absent", tmp_path / "pipe", tmp_path])
    assert found[0] == "unreadable: No such file or directory"
    assert found[1] == "unreadable: it is no regular file"  # to open it would wait for ever
    assert found[2] == "unreadable: it is a folder"
