"""A table says which split a photo belongs to, and what it was taken together with."""

import pytest
from conftest import draw_photo

from semantic_aug import UserError
from semantic_aug.datasets import build_dataset


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        for number in range(3):
            draw_photo(tmp_path / f"photos/{name}/{number}.png", "red", number)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def read(root, text, split="train", encoding="utf-8"):
    (root / "table.csv").write_text(text, encoding=encoding)
    return build_dataset("folder", split, data_dir=root, dataset_args=["splits=table.csv"])


def test_splits_and_groups_are_those_of_the_table(root, caplog):
    text = "note,source,split,group\nx,cat/0.png,train,a\n,cat/1.png,val,\n,dog/2.png,train,a\n"
    text += ",dog/1.png,test,b\n,cat/9.png,train,a\n"
    with caplog.at_level("INFO"):
        train = read(root, text, encoding="utf-8-sig")
    assert [(r.source, r.group) for r in train.records] == [("cat/0.png", "a"), ("dog/2.png", "a")]
    assert train.class_names == ["cat", "dog"]
    said = [each.getMessage() for each in caplog.records]
    missing, others = said
    assert (
        missing == f"1 of the 5 photos that {root / 'table.csv'} lists do not exist, such as "
        "cat/9.png: left out"
    )
    assert others == f"2 photos that {root / 'table.csv'} does not name: left out"
    assert not any("60 % train" in each for each in said)
    assert [r.source for r in read(root, text, "val").records] == ["cat/1.png"]
    assert [(r.source, r.group) for r in read(root, text, "test").records] == [("dog/1.png", "b")]


def test_masks_and_a_table_beside_the_photos(root):
    for name in ("cat", "dog"):
        draw_photo(root / f"outlines/{name}/0.png", "white", 0)
    text = "source,split\ncat/0.png,train\ndog/1.png,train\n"
    (root / "table.csv").write_text(text)
    options = ["splits=" + str(root / "table.csv"), "masks=outlines"]
    records = build_dataset("folder", "train", data_dir=root, dataset_args=options).records
    assert [record.mask and record.mask.name for record in records] == ["0.png", None]
    assert [record.group for record in records] == ["", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,split\ncat/0.png,train\n", "line 2 has no source; expected a table with"),
        ("source,split\ncat/0.png\n", "line 2 has no split; expected"),
        ("source,split\ncat/0.png,left\n", "line 2 has split 'left', expected train, val, test"),
        ("source,split\ncat/0.png,val\ncat/0.png,train\n", "line 3 names cat/0.png a second time"),
        ("source,split\n", "no photo in it"),
        ("source,split\nphotos/cat/0.png,train\n", "its photos do not exist, such as photos/"),
        ("\xe9,split\n", "it is no CSV in UTF-8"),
    ],
)
def test_a_table_that_is_none(root, text, message):
    with pytest.raises(UserError, match=f"splits=.*table.csv: .*{message}"):
        read(root, text, encoding="latin-1")


def test_a_table_that_is_not_there(root):
    with pytest.raises(
        UserError, match=r"splits=no.csv: expected a file, no.csv or .*photos/no.csv"
    ):
        build_dataset("folder", "train", data_dir=root, dataset_args=["splits=no.csv"])
