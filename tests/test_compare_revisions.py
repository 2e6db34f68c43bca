"""scripts/compare_outputs.py: what it names, and what it leaves aside."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.numpy import save

sys.path.insert(0, str(ROOT / "scripts"))
import compare_outputs

PROCESS = "output/e/processes/{time}.generate_augmentations.{host}-{pid}.json"
RECORDS = "output/e/aug/seed=0_ex=1/records/0123abcd.{time}.shard0of1.{pid}.jsonl"
CONFIG, REVISION = "output/e/aug/seed=0_ex=1/config.json", "output/e/results/aug/config.json"
WORDS, BYTES = "output/e/fine-tuned-merged/seed=0_ex=1.safetensors", "output/e/aug/some.bytes"
SUMMARY, PAGE = "output/e/results/aug/summary.csv", "output/e/report/seed=0_ex=1.html"
PICTURE, SAID = "output/e/aug/seed=0_ex=1/000000-000.png", "commands/edits/01.stderr"
OTHER = "commands/edits/01.stdout"
SCORES = "output/e/results/aug/results_0_1.csv"
RECORD = {"file_name": "000000-000.png", "label": 0, "prompt": "a photo", "seed": 0}
LINES = [json.dumps(RECORD | {"index": number}) + "\n" for number in range(4)]


def picture(red: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 2, 3)).save(file, "PNG")
    return file.getvalue()


def words(number: float, **metadata: str) -> bytes:
    return save({"<cat>": np.full((2, 3), number, np.float32)}, metadata)


def page(seconds: float, name: str) -> str:
    data = json.dumps({"sets": [{"name": name, "seconds": seconds}]})
    return f'<p>\n<script id="data" type="application/json">{data}</script>\n<p>'


def leave(folder, time, host, pid, seconds, torn, **changed) -> str:
    """What commands might leave; `changed` is a file and its content. Returns the folder's name."""
    process = {"stage": "generate_augmentations", "host": host, "pid": pid, "state": "done",
               "images": 4, "seconds": seconds}  # fmt: skip
    bar = "\r".join(f"generate:  {p}%|##  | {p}/100 [00:0{time % 9}<00:01]" for p in (0, time, 100))
    files = {
        PROCESS: json.dumps(process),
        RECORDS: "".join(LINES[:torn]),
        RECORDS.replace("{time}", "9{time}"): "".join(LINES[torn:]),
        CONFIG: json.dumps({"settings": {}, "arguments": {}}),
        REVISION: json.dumps({"git_revision": f"{pid:040x}", "data_dir": f"{folder}/photos"}),
        WORDS: words(1.0, model="sd", settings='{"k": 1}'),
        SUMMARY: f"method,mean,train_seconds\naug,0.5,{seconds}\nreal,0.25,\n",
        SCORES: "epoch,value,metric\n0,0.5,Accuracy\n",
        PAGE: page(seconds, "aug"),
        PICTURE: picture(1),
        BYTES: b"\xff\x00",
        SAID: f"process {pid} on {host} is at it ({seconds} s)\n{bar}\n{folder}/output: done\n",
        OTHER: "usage: x\n\nend\n",
        **{name: changed[name] for name in changed},
    }
    for name, content in files.items():
        path = folder / name.format(time=time, host=host, pid=pid)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


@pytest.fixture
def compare(tmp_path, capsys):
    """Status and lines of the comparison of two folders, of which the newer has changed files."""

    def compare(**changed):
        sides = [
            leave(tmp_path / "old", 10, "here", 1234, 0.5, 1),
            leave(tmp_path / "new", 55, "there", 77, 12, 3, **changed),
        ]
        same = ["--same", "revision", f"{1234:040x}", f"{77:040x}"]
        status = compare_outputs.main([*sides, *same])
        return status, capsys.readouterr().out.splitlines()

    return compare


def test_what_is_left_aside_is_left_aside(compare):
    assert compare() == (0, ["12 files are equal"])


ENDS = re.compile(r'"[0-9a-f]{12}"')  # digests

CHANGES = {
    "a key that is gone, and a number that is none": (
        PROCESS,
        json.dumps({"stage": "generate_augmentations", "host": "x", "pid": None, "state": "done"}),
        [
            '(order of keys): OLD ["stage", "host", "pid", "state", "images", "seconds"], '
            'NEW ["stage", "host", "pid", "state"]',
            'pid: OLD "<a number>", NEW "<nothing>"',
            "images: OLD 4, NEW absent",
            'seconds: OLD "<a number>", NEW absent',
        ],
    ),
    "the order of keys": (
        CONFIG,
        json.dumps({"arguments": {}, "settings": {}}),
        [
            '(order of keys): OLD ["settings", "arguments"], NEW ["arguments", "settings"]',
        ],
    ),
    "one key of two records": (
        RECORDS,
        "".join(LINES[:3]).replace("photo", "foto"),
        ['prompt in line 1: OLD "a photo", NEW "a foto", and 2 more'],
    ),
    "a revision and a path": (
        REVISION,
        json.dumps({"git_revision": None, "data_dir": "elsewhere"}),
        [
            'git_revision: OLD "<revision>", NEW null',
            'data_dir: OLD "<folder>/photos", NEW "elsewhere"',
        ],
    ),
    "metadata and numbers": (
        WORDS,
        words(1.5, model="other", settings='{"k": 1}'),
        [
            'metadata model: OLD "sd", NEW "other"',
            'tensor <cat>: OLD ["F32", [2, 3], "..."], NEW ["F32", [2, 3], "..."]',
        ],
    ),
    "two columns": (
        SUMMARY,
        "method,mean,train_seconds\naug,0.5,1\nreal,0.75,2\n",
        [
            'mean in line 3: OLD "0.25", NEW "0.75"',
            'train_seconds in line 3: OLD "<nothing>", NEW "<a number>"',
        ],
    ),
    "quotes": (
        SCORES,
        'epoch,value,metric\n0,0.5,"Accuracy"\n',
        ["only the form differs, such as blanks, quotes or the compression"],
    ),
    "a key in the data of a page": (
        PAGE,
        page(1, "other"),
        ['data sets.0.name: OLD "aug", NEW "other"'],
    ),
    "a blank line": (
        OTHER,
        "usage: x\n\n\nend\n",
        ["NEW "],
    ),
    "one value of one pixel": (PICTURE, picture(2), ['pixels: OLD "...", NEW "..."']),
    "one byte": (BYTES, b"\xff\x01", ['sha256: OLD "...", NEW "..."']),
    "a message, and how much a bar has counted": (
        SAID,
        "process 1 on x is at it (7 s)\ngenerate: 100%|#| 99/99 [0]\n<folder>/output: done\n",
        ["OLD generate: 100/100", "NEW generate: 99/99"],
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_differs_is_named_and_nothing_else(compare, what):
    name, content, expected = CHANGES[what]
    status, lines = compare(**{name: content})
    assert (status, lines[-1]) == (1, "12 files compared, 1 differ")
    assert [ENDS.sub('"..."', line.partition(": ")[2]) for line in lines[:-1]] == expected


def test_files_of_one_side_are_named(compare):
    assert compare(**{"output/e/more": ""})[1][:-1] == ["output/e/more: only in NEW"]


def test_bad_use_is_one_line():
    script = ROOT / "scripts" / "compare_revisions.sh"
    for flags, expected in (
        (["no-such-revision"], "git knows no revision no-such-revision"),
        (["--only", "nothing"], "--only takes one of: sample words"),
        (["--no_such_flag"], "usage: "),
        (["a", "b", "c"], "usage: "),
    ):
        ended = subprocess.run(["bash", script, *flags], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert expected in ended.stderr


def test_parts_are_listed():
    listed = subprocess.run(
        ["bash", ROOT / "scripts" / "compare_revisions.sh", "--list"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "words: textual inversion" in listed and len(listed.splitlines()) == 9
