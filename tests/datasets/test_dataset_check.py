"""`python -m semantic_aug.datasets`: the list, and `check`, which reads a whole dataset."""

import json
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
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{kind}: "))
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
    assert "\n        level: the meaning of a class: `variant`, `family` or" in entries["aircraft"]
    assert main(["list"]) == 0 and capsys.readouterr().out == text
    assert main(["aircraft"]) == 0
    assert capsys.readouterr().out == "aircraft\n" + entries["aircraft"] + "\n"


def test_list_shows_a_dataset_of_ones_own(workdir, capsys, monkeypatch):
    (workdir / "own_datasets.py").write_text(
        '''
from semantic_aug.few_shot_dataset import FewShotDataset

class Welds(FewShotDataset):
    """Weld seams.

    Args:
        camera: only photos of this camera.
    """
    env = "WELD_DIR"

    def __init__(self, *, camera: str = "left", sharp: bool = True, **kwargs):
        super().__init__(**kwargs)

class Plain(FewShotDataset):
    def __init__(self, table, split="train", seed=0):
        pass
'''
    )
    monkeypatch.syspath_prepend(str(workdir))
    assert main(["own_datasets:Welds"]) == 0
    text = capsys.readouterr().out
    assert text == (
        "own_datasets:Welds\n    Weld seams.\n\n    Root: --data_dir, else WELD_DIR\n"
        "    Options: camera=left, sharp=true\n        camera: only photos of this camera.\n"
    )
    assert main(["list", "own_datasets:Plain"]) == 0
    text = capsys.readouterr().out
    sys.modules.pop("own_datasets")
    assert "Options: table (needed)" in text and "Labelled photos" not in text


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
    assert "photos without a mask, while others have one: 1\n  val/cat/0.png" in text
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
    assert len(lines) == 3 and "unreadable photos: 3" in text
    assert "train/cat/0.png: the file is empty" in lines[0]
    assert "val/cat/0.png" in lines[1] and "test/cat/1.png" in lines[2]
    assert row(text, "cat") == [3, 2, 2]  # they are listed, and would be skipped


def test_check_names_photos_of_doubtful_brightness(photos, capsys):
    deep = np.full((40, 48), 4095, np.uint16)
    deep[0] = 0
    Image.fromarray(deep).save(photos / "train" / "cat" / "camera.png")
    Image.new("RGB", (48, 40), "white").save(photos / "val" / "cat" / "blank.png")
    arguments = ["folder", "--data_dir", str(photos)]
    status, text = check(capsys, *arguments)
    kind = "photos whose brightness may be wrong (for files of more than 8 bits, "
    kind += "--dataset_args bits=12 gives the number of used bits)"
    assert status == 1
    assert section(text, kind) == [
        "train/cat/camera.png: almost black (0 to 16 of 255)",
        "val/cat/blank.png: almost white (255 to 255 of 255)",
    ]
    (photos / "val" / "cat" / "blank.png").unlink()
    status, text = check(capsys, *arguments, "--dataset_args", "bits=12")
    assert status == 0 and "brightness" not in text


def test_check_counts_files_that_are_not_taken_and_names_them(photos, capsys):
    for number in range(12):
        (photos / "train" / "cat" / f"{number}.txt").write_text("a caption")
    (photos / "train" / "dog.HEIC").write_bytes(b"")
    (photos / "README").write_text("read me")
    (photos / ".hidden").write_text("")
    Image.new("L", (48, 40)).save(photos.parent / "mask.png")
    (photos / "segments" / "train" / "cat").mkdir(parents=True)
    copy(photos.parent / "mask.png", photos / "segments" / "train" / "cat" / "0.png")
    arguments = ["folder", "--data_dir", str(photos)]
    status, text = check(capsys, *arguments)
    counted = "15 files are no photo of a class: .txt 12, no suffix 1, .png 1, .heic 1"
    assert status == 0 and f"others  {counted} (--verbose names them)\n" in text
    status, text = check(capsys, *arguments, "--verbose")
    lines = text.splitlines()
    start = lines.index(f"others  {counted}")
    assert lines[start + 1 : start + 3] == ["  README", "  segments/train/cat/0.png"]
    assert lines[start + 15] == "  train/dog.HEIC"
    _, text = check(capsys, *arguments, "--dataset_args", "masks=segments")
    assert "14 files are no photo of a class: .txt 12," in text  # masks that are used are not
    _, text = check(capsys, *arguments, "--mask_dir", str(photos / "segments"))
    assert "photos without a mask, while others have one: 20" in text


def test_check_finds_copies_across_splits_and_classes(photos, capsys):
    copy(photos / "train" / "cat" / "0.png", photos / "test" / "cat" / "copy.png")
    copy(photos / "val" / "cat" / "0.png", photos / "val" / "toy train" / "copy.png")
    copy(photos / "train" / "cat" / "1.png", photos / "train" / "cat" / "copy.png")  # harmless
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert section(text, "photos in several splits")[0] == (
        "train/cat/0.png (train) = test/cat/copy.png (test)"
    )
    assert "photos in several splits: 1" in text and "photos in several classes: 1" in text
    assert "val/cat/0.png (cat) = val/toy train/copy.png (toy train)" in text
    assert "copies  3 photos with the same bytes as another photo" in text


def copy(source, target):
    target.write_bytes(source.read_bytes())


def test_check_counts_modes_sizes_and_empty_classes(photos, capsys):
    Image.new("L", (10, 20), 99).save(photos / "train" / "cat" / "grey.png")
    Image.new("CMYK", (100, 90), (0, 99, 99, 0)).save(photos / "train" / "cat" / "print.jpg")
    for split in ("train", "val", "test"):
        (photos / split / "unicorn").mkdir()
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 0
    assert "modes   RGB 21, L 1, CMYK 1" in text
    assert "sizes   10 x 20 to 100 x 90 pixels, middle 48 x 40, 3 different" in text
    assert "classes without a photo, 1: unicorn" in text


def test_check_names_classes_that_only_other_splits_have(photos, capsys):
    (photos / "test" / "cat").rename(photos / "test" / "Cat")
    for number in range(2):
        copy(photos / "val" / "cat" / f"{number}.png", photos / "test" / f"{number}.png")
    (photos / "test" / "crack").mkdir()
    for number in range(2):
        path = photos / "test" / f"{number}.png"
        path.rename(photos / "test" / "crack" / path.name)
        Image.new("RGB", (9, 9), (number, 7, 70)).save(photos / "test" / "crack" / path.name)
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert section(text, "classes without training photos") == [
        "Cat: 0 in val, 2 in test; is it the class cat?", "crack: 0 in val, 2 in test",
    ]  # fmt: skip
    assert text.endswith("23 photos of 5 classes: 2 problems\n")


def test_check_of_masks_without_any_object(photos, capsys):
    arguments = ["folder", "--data_dir", str(photos), "--dataset_args", "masks=../masks"]
    masks = sorted((photos.parent / "masks").rglob("*.png"))
    for path in masks[1:]:
        Image.new("L", (48, 40), 0).save(path)
    status, text = check(capsys, *arguments)
    assert status == 0 and "masks   good 1, empty 20" in text  # some photos show no object
    Image.new("L", (48, 40), 0).save(masks[0])
    status, text = check(capsys, *arguments)
    assert status == 1 and "masks   empty 21" in text
    lines = section(text, "empty masks (no mask shows an object)")
    assert len(lines) == 11 and lines[0] == "train/cat/0.png"


def test_check_names_photos_that_are_listed_and_not_on_the_disk(tmp_path, capsys):
    ids = range(1, 31)
    for split in ("train", "val"):
        (tmp_path / f"{split}2017" / "cam1").mkdir(parents=True)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        content = {
            "images": [{"id": n, "file_name": f"cam1/{split} {n}.png"} for n in ids],
            "categories": [{"id": 17, "name": "cat"}],
            "annotations": [{"id": n, "image_id": n, "category_id": 17} for n in ids],
        }
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
        for number in ids[::2]:
            photo = tmp_path / f"{split}2017" / "cam1" / f"{split} {number}.png"
            Image.new("RGB", (9, 9), (number, len(split), 70)).save(photo)
    status, text = check(capsys, "coco", "--data_dir", str(tmp_path), "--verbose")
    assert status == 1 and row(text, "total")[0] == 15 and "warnings" not in text
    assert section(text, "listed files that are not on the disk") == [
        f"{split}2017/cam1/{split} {number}.png" for split in ("train", "val")
        for number in ids[1::2]
    ]  # fmt: skip
    assert text.endswith("30 photos of 80 classes: 30 problems\n")


def test_check_takes_warnings_for_problems(photos, capsys):
    Image.new("RGB", (9, 9)).save(photos / "loose.png")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1
    assert section(text, "warnings") == [f"1 photo without a class directly in {photos}"]
    assert text.endswith("21 photos of 3 classes: 1 problem\n")


def test_check_shows_some_of_many_problems(photos, capsys):
    for number in range(30):
        (photos / "train" / "cat" / f"broken {number:02d}.png").write_bytes(b"")
    status, text = check(capsys, "folder", "--data_dir", str(photos))
    assert status == 1 and "unreadable photos: 30" in text
    assert "  ... and 20 more (--verbose)" in text
    assert text.count("the file is empty") == 10
    status, text = check(capsys, "folder", "--data_dir", str(photos), "--verbose")
    assert status == 1 and text.count("the file is empty") == 30 and "more" not in text


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
        (["check", "folder"], "semantic_aug.datasets: error: no data root for FolderDataset"),
        (["check", "folder", "--data_dir=/nowhere"], "data root /nowhere is not a folder"),
        (["check", "folder", "--dataset_args", "x=1"], "unknown key 'x'"),
        (["list", "folder", "--data_dir=x"], "list takes no flags"),
        (["inspect"], "got 'inspect', expected coco, mvip, folder"),
        (["inspect", "folder"], "got inspect folder, expected check folder, or a NAME"),
        (["nowhere:Dataset"], "cannot import 'nowhere'"),
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
    assert status == 1 and "unreadable photos: 1" in printed.out
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
    assert "modes   RGB 474, L 6" in text and "classes without a photo, 89:" in text
    status, text = check(capsys, "coco", "--data_dir", str(real_data / "coco2017"))
    assert status == 1  # few photos of many classes
    assert "bus: 3 in val, 2 in test" in section(text, "classes without training photos")
    assert text.endswith("97 photos of 80 classes: 15 problems\n")
    assert sum(row(text, "total")) == 97 and "masks   good 97" in text
    assert np.array_equal(row(text, "toilet"), [9, 0, 4])
    arguments = ["--data_dir", str(real_data / "coco2017"), "--dataset_args", "published_val=true"]
    status, text = check(capsys, "coco", *arguments)
    assert row(text, "total") == [49, 48, 0]  # no test, as was asked for
    assert "splits that cannot be listed" not in text
