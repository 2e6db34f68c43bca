"""`python -m semantic_aug.datasets`: the list, and `check`, which reads a whole dataset."""

import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from semantic_aug.datasets import DATASETS
from semantic_aug.datasets.__main__ import main


def check(capsys, *argv):
    """Exit status and what was printed on stdout."""
    status = main(["check", *argv])
    return status, capsys.readouterr().out


def row(text, name):
    """The numbers behind a name in the table of counts."""
    line = next(line for line in text.splitlines() if re.match(rf"{name}  ", line))
    return [int(number.replace(",", "")) for number in line.removeprefix(name).split()]


def section(text, kind):
    """The lines under the heading of a kind of problem."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.endswith(f" {kind}:"))
    end = lines.index("", start)
    return [line.strip() for line in lines[start + 1 : end]]


def test_list_names_every_dataset_and_what_it_needs(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    entries = dict(entry.split("\n", 1) for entry in re.split(r"\n\n(?=\S)", text))
    assert list(entries) == list(DATASETS)
    assert "ROOT/101_ObjectCategories/CLASS/image_0001.jpg" in entries["caltech101"]
    assert "Root: --data_dir, else PETS_DIR, else data/oxford-iiit-pet" in entries["pets"]
    assert "Options: level=variant" in entries["aircraft"]
    assert "Options: published_val=false" in entries["pascal"]
    assert "Options: none" in entries["flowers102"]
    assert "\n        level: what a class is: `variant`, `family` or" in entries["aircraft"]
    assert main(["list"]) == 0 and capsys.readouterr().out == text


def test_check_of_a_good_dataset(photos, capsys):
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 0
    assert text.splitlines()[0].split() == ["class", "train", "val", "test"]
    assert row(text, "stop sign") == [3, 2, 2]
    assert row(text, "total") == [9, 6, 6]
    assert "sizes   48 x 40 to 48 x 40 pixels, middle 48 x 40, 1 different" in text
    assert "modes   RGB 21" in text and "masks   none 21" in text
    assert text.endswith("21 photos of 3 classes: nothing is wrong\n")


def test_check_reads_masks_and_takes_options(photos, capsys):
    arguments = ["folder", "--data-dir", str(photos), "--dataset_args", "masks=../masks"]
    status, text = check(capsys, *arguments)
    assert status == 0 and "masks   good 21" in text
    masks = photos.parent / "masks"
    (masks / "val" / "cat" / "0.png").unlink()
    (masks / "val" / "cat" / "1.png").write_bytes(b"broken")
    Image.new("L", (3, 3), 255).save(masks / "train" / "cat" / "0.png")
    Image.new("L", (48, 40), 0).save(masks / "train" / "cat" / "1.png")
    status, text = check(capsys, *arguments)
    assert status == 1
    assert "masks   good 17, empty 1, bad 2, none 1" in text
    assert "1 photos without a mask, while others have one:\n  val/cat/0.png" in text
    bad = section(text, "masks that cannot be used")
    assert any("mask of train/cat/0.png is 3x3 pixels" in line for line in bad)
    assert any("cannot read mask" in line and "1.png" in line for line in bad)
    assert text.endswith("21 photos of 3 classes: 3 problems\n")


def test_check_names_unreadable_photos(photos, capsys):
    (photos / "train" / "cat" / "0.png").write_bytes(b"")
    whole = (photos / "test" / "cat" / "1.png").read_bytes()
    (photos / "test" / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (photos / "val" / "cat" / "0.png").write_text("<html>404</html>")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    lines = section(text, "unreadable photos")
    assert len(lines) == 3 and "3 unreadable photos:" in text
    assert "train/cat/0.png: the file is empty" in lines[0]
    assert "val/cat/0.png" in lines[1] and "test/cat/1.png" in lines[2]
    assert row(text, "cat") == [3, 2, 2]  # they are listed, and would be skipped


def test_check_finds_copies_across_splits_and_classes(photos, capsys):
    copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "copy.png")
    copy(photos / "val" / "cat" / "0.png", photos / "val" / "toy train" / "copy.png")
    copy(photos / "train" / "cat" / "1.png", photos / "train" / "cat" / "copy.png")  # harmless
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert section(text, "photos in several splits")[0] == (
        "train/cat/0.png (train) = test/cat/copy.png (test)"
    )
    assert "1 photos in several splits:" in text and "1 photos in several classes:" in text
    assert "val/cat/0.png (cat) = val/toy train/copy.png (toy train)" in text
    assert "copies  3 photos have the same bytes as another one" in text


def copy(source, target):
    target.write_bytes(source.read_bytes())


def test_check_counts_modes_sizes_and_empty_classes(photos, capsys):
    Image.new("L", (10, 20)).save(photos / "train" / "cat" / "grey.png")
    Image.new("CMYK", (100, 90)).save(photos / "train" / "cat" / "print.jpg")
    for split in ("train", "val", "test"):
        (photos / split / "unicorn").mkdir()
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 0
    assert "modes   RGB 21, L 1, CMYK 1" in text
    assert "sizes   10 x 20 to 100 x 90 pixels, middle 48 x 40, 3 different" in text
    assert "1 classes have no photo: unicorn" in text


def test_check_takes_warnings_for_problems(photos, capsys):
    Image.new("RGB", (9, 9)).save(photos / "loose.png")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert section(text, "warnings") == [f"1 photos directly in {photos} have no class"]
    assert text.endswith("21 photos of 3 classes: 1 problems\n")


def test_check_shows_some_of_many_problems(photos, capsys):
    for number in range(30):
        (photos / "train" / "cat" / f"broken {number:02d}.png").write_bytes(b"")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1 and "30 unreadable photos:" in text and "  ... and 20 more" in text
    assert text.count("the file is empty") == 10


def test_check_of_a_split_that_cannot_be_listed(photos, capsys):
    for path in (photos / "test").rglob("*.png"):
        path.unlink()
    for path in (photos / "val").rglob("*.png"):
        path.unlink()
    save = photos / "train" / "cat"
    for path in (photos / "train").rglob("*.png"):
        path.unlink()
    Image.new("RGB", (9, 9)).save(save / "only.png")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert [line[:20] for line in section(text, "splits that cannot be listed")] == [
        "val: no photo of spl", "test: no photo of sp",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["check"], "check needs the name of a dataset"),
        (["check", "nothing"], "got 'nothing', expected coco, mvip, folder"),
        (["check", "folder", "--data_dir=/nowhere"], "data root /nowhere is not a folder"),
        (["check", "folder", "--dataset_args", "x=1"], "unknown key 'x'"),
        (["list", "folder"], "list takes no flags"),
        (["inspect"], "invalid choice: 'inspect'"),
        (["--help-me"], "unrecognized arguments"),
    ],
)
def test_bad_input_of_the_command(workdir, capsys, argv, message):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1


def test_the_command_as_it_is_typed(photos, workdir, monkeypatch, capsys):
    """`python -m semantic_aug.datasets check …`, in this process."""
    (photos / "train" / "cat" / "0.png").write_bytes(b"")

    def typed(*argv):
        monkeypatch.delitem(sys.modules, "semantic_aug.datasets.__main__", raising=False)
        monkeypatch.setattr(sys, "argv", ["python", "check", *argv])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("semantic_aug.datasets", run_name="__main__", alter_sys=True)
        return ended.value.code, capsys.readouterr()

    status, printed = typed("folder", "--data_dir", "photos")
    assert status == 1 and "1 unreadable photos:" in printed.out
    assert "reading: 100%" in printed.err and "21/21" in printed.err  # the progress bar
    status, printed = typed("folder")
    assert status == 2 and printed.out == ""
    assert printed.err.startswith("semantic_aug.datasets: error: no data root for FolderDataset")


def test_check_of_a_subclass_that_makes_its_images_itself(workdir, capsys, monkeypatch):
    (workdir / "old_dataset.py").write_text(
        """
import numpy as np
from PIL import Image
from semantic_aug.few_shot_dataset import FewShotDataset

class Old(FewShotDataset):
    class_names = ["dark", "light"]

    def __init__(self, split="train", seed=0, **kwargs):
        super().__init__(**kwargs)
        self.first = {"train": 0, "val": 10, "test": 20}[split]
        self.split = split

    def __len__(self):
        return 4

    def get_image_by_idx(self, idx):
        if self.first == 20 and idx == 3:
            raise OSError("the camera was off")
        return Image.new("RGB", (6, 5), (self.first + idx, 0, 0))

    def get_label_by_idx(self, idx):
        return idx % 2

    def get_metadata_by_idx(self, idx):
        return {"name": self.class_names[idx % 2], "mask": np.ones((5, 6))}
"""
    )
    monkeypatch.syspath_prepend(str(workdir))
    status, text = check(capsys, "old_dataset:Old")
    sys.modules.pop("old_dataset")
    assert status == 1
    assert row(text, "light") == [2, 2, 2] and "masks   good 11, none 1" in text
    assert section(text, "unreadable photos") == ["3: OSError: the camera was off"]


def test_check_of_real_photos(real_data, capsys):
    status, text = check(capsys, "caltech101", "--data_dir", str(real_data / "caltech101"))
    assert status == 0
    assert row(text, "grand piano") == [24, 8, 8] and row(text, "total") == [288, 96, 96]
    assert "modes   RGB 474, L 6" in text and "89 classes have no photo" in text
    status, text = check(capsys, "coco", "--data_dir", str(real_data / "coco2017"))
    assert status == 0
    assert sum(row(text, "total")) == 97 and "masks   good 97" in text
    assert np.array_equal(row(text, "toilet"), [9, 0, 4])
    arguments = ["--data_dir", str(real_data / "coco2017"), "--dataset_args", "published_val=true"]
    status, text = check(capsys, "coco", *arguments)
    assert status == 0 and row(text, "total") == [49, 48, 0]  # no test, as was asked for
