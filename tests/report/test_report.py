"""The page and the contact sheets of a trial: their data, and the page in a real browser."""

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import draw_photo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from semantic_aug import UserError
from semantic_aug.datasets import build_dataset
from semantic_aug.experiment.config import write_config
from semantic_aug.experiment.files import hostname
from semantic_aug.experiment.names import places_dir
from semantic_aug.experiment.timing import GENERATE, Work
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.images.layout import Layout
from semantic_aug.images.likeness import change_of, reduced
from semantic_aug.images.sheet import contact_sheet
from semantic_aug.report import sheets
from semantic_aug.report.__main__ import main as report
from semantic_aug.report.page import NEAR_DUPLICATE, script_json, whole_layouts
from semantic_aug.synthesis.making import generate
from semantic_aug.synthesis.records import RecordWriter, read_records, read_scores

EVIL_CLASS = '<img src=x onerror=hacked=1> & "it\'s"'
EVIL_PROMPT = "</script><script>hacked=1</script> a \"photo\" & 'more' <!-- of a {name}"
STRENGTHS = (0.25, 0.5, 0.75)
FLAGS = ["--dataset=folder", "--data_dir=photos", "--experiment_name=e", "--examples_per_class=2"]


def noise_like(image, generator):
    noise = torch.randint(256, (*image.size[::-1], 3), generator=generator)
    return Image.fromarray(noise.numpy().astype(np.uint8))


class Stub(GenerativeAugmentation):
    """Variant 0 of each photo is the photo, the others are noise; each has its own strength."""

    def augment(self, images, labels, metadata, generators):
        results, edits = [], []
        for number, (image, generator) in enumerate(zip(images, generators)):
            results.append(image if number == 0 else noise_like(image, generator))
            edits.append([Edit("stub", EVIL_PROMPT, STRENGTHS[number], 7.5, False, False)])
        return results, edits


LAYOUT = Layout(0.849, -6.2, (-0.156, 0.035), True, (-0.183, 1.0, 1.265))
REASON = "its <b>mask</b> is empty"


class Pasting(GenerativeAugmentation):
    """Noise: variant 0 of a photo as `background` says it, 1 and 2 as `paste`, 3 as a sequence."""

    details = (*LAYOUT.details(), "place", "place_sha256", "other_photo")

    def augment(self, images, labels, metadata, generators):
        moved, still = LAYOUT.details(), Layout().details()
        places = [{"place": "a desk"}, {"place": "000001.png", "place_sha256": "a" * 64}]
        other = {"other_photo": "cat/<b>.png"}
        background = Edit("background", "a desk", 1.0, 7.5, True, True, details=moved | places[0])
        pasted = [Edit("paste", None, None, None, True, True, details=each)
                  for each in (moved | places[1], still | other, moved | other)]  # fmt: skip
        stub = Edit("stub", "a photo", 0.5, 7.5, False, False)
        edits = [[background], [pasted[0]], [pasted[1]], [stub, pasted[2]]]
        return list(map(noise_like, images, generators)), edits


def make_images(name="aug", examples_per_class=2, repeats=3, aug=Stub, left_out=None):
    """Synthetic images of the photos in `photos/`, with records as the command writes them."""
    dataset = build_dataset(
        "folder", "train", data_dir="photos", examples_per_class=examples_per_class
    )
    folder = Path("output/e") / name / f"seed=0_ex={examples_per_class}"
    constants = {"seed": 0, "examples_per_class": examples_per_class, "model": "m & m"}
    indices = [n for n, source in enumerate(dataset.sources()) if source not in (left_out or {})]
    generate(dataset, aug, folder, {"a": 1}, num_synthetic=repeats, batch_size=repeats,
             constants=constants, indices=indices, left_out=left_out)  # fmt: skip
    return dataset, folder


def append(folder, number, *lines):
    """One more file of records, such as a filter writes; a `dict` becomes a line."""
    identity = json.loads((folder / "config.json").read_text())["id"]
    path = folder / "records" / f"{identity}.{9 * 10**18 + number}.filter.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" if isinstance(x, dict) else x for x in lines))


def score(folder):
    """Scores 0, 0.1, 0.2 ... of all images in order; those below 0.5 are marked."""
    scores = [{"file_name": r["file_name"], "score": n / 10, "kept": n >= 5}
              for n, r in enumerate(read_records(folder))]  # fmt: skip
    append(folder, 0, *scores)


def page_data(path="output/e/report/seed=0_ex=2.html"):
    text = Path(path).read_text(encoding="utf-8")
    return json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture
def trial(photos, workdir):
    """Two sets of images of two photos of each of four classes, one with a name full of markup."""
    for split in ("train", "val", "test"):
        for number in range(2):
            draw_photo(photos / split / EVIL_CLASS / f"{number}.png", (9, 9, 9), number)
    make_images("plain")
    _, folder = make_images("sco red#1", repeats=2)
    score(folder)
    return workdir


# --- files and data --------------------------------------------------------------------------


def test_page_overview_and_a_sheet_per_class(trial, capsys):
    before = sorted(Path("output/e/plain").rglob("*"))
    folder = Path("output/e/report")
    left = [folder / name / f".x.0.{hostname()}-{2**22 + 1}.tmp"
            for name in ("", "seed=0_ex=2", "seed=0_ex=2/photos")]  # fmt: skip
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half, by a process that was killed")
    report([*FLAGS, "--aug_name", "plain", "sco red#1"])
    assert not any(path.exists() for path in left)
    left[2].parent.rmdir()
    assert capsys.readouterr().out.split() == [
        str(folder / "seed=0_ex=2.png"), str(folder / "seed=0_ex=2.html")]  # fmt: skip
    sheets = sorted(path.name for path in (folder / "seed=0_ex=2").iterdir())
    assert [*sheets[1:]] == ["cat.png", "stop_sign.png", "toy_train.png"]
    assert re.fullmatch(r"_img_src=x_onerror=hacked=1__&__it's_\.png", sheets[0])
    sizes = {name: Image.open(folder / "seed=0_ex=2" / name).size for name in sheets}
    assert all(size[0] > 6 * 96 and 2 * 96 < size[1] < 3 * 96 for size in sizes.values())
    assert Image.open(folder / "seed=0_ex=2.png").height > 4 * 96
    assert sorted(Path("output/e/plain").rglob("*")) == before  # imagefolder's pictures alone


def test_data_of_the_page(trial, capsys):
    report([*FLAGS, "--aug_name", "plain", "sco red#1"])
    data = page_data()
    assert data["classes"] == [EVIL_CLASS, "cat", "stop sign", "toy train"]
    assert [s["name"] for s in data["sets"]] == ["plain", "sco red#1"]
    assert data["sets"][1]["folder"] == "../sco%20red%231/seed=0_ex=2/"
    assert [photo["class"] for photo in data["photos"]] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(data["variants"]) == 8 * 3 + 8 * 2
    assert len(data["settings"]) == 3  # each said once
    for variant in data["variants"]:
        settings = data["settings"][variant["settings"]]
        assert settings["prompt"] == EVIL_PROMPT
        assert settings["model"] == "m & m"
        assert (variant["change"] < NEAR_DUPLICATE) == (settings["strength"] == [0.25])
        assert variant["image"].startswith("data:image/webp;base64,")
    scored = [v for v in data["variants"] if "score" in v]
    assert [v["score"] for v in scored] == [n / 10 for n in range(16)]
    assert [v["kept"] for v in scored] == [n >= 5 for n in range(16)]
    assert {v["set"] for v in scored} == {1}
    assert "16 of 40 variants are near-duplicates" in capsys.readouterr().err


def test_selected_classes_and_several_trials(trial):
    make_images("plain", examples_per_class=1)
    flags = [*FLAGS[:-1], "--examples_per_class", "1", "2", "--aug_name=plain"]
    report([*flags, "--classes", "cat", "stop sign"])
    for examples in (1, 2):
        data = page_data(f"output/e/report/seed=0_ex={examples}.html")
        assert [photo["class"] for photo in data["photos"]] == [1] * examples + [2] * examples
        assert len(data["variants"]) == 2 * examples * 3


def test_an_unfinished_generation_is_shown(trial):
    folder = Path("output/e/plain/seed=0_ex=2")
    for name in ("000000-000.png", "000003-000.png", "000003-001.png", "000003-002.png"):
        (folder / name).unlink()
    report([*FLAGS, "--aug_name=plain"])
    data = page_data()
    assert len(data["photos"]) == 8
    found = [v["photo"] for v in data["variants"]]
    assert [found.count(number) for number in range(8)] == [2, 3, 3, 0, 3, 3, 3, 3]


def test_near_duplicates_as_the_user_defines_them(trial, capsys):
    report([*FLAGS, "--aug_name=plain", "--near_duplicate=300"])
    assert page_data()["near_duplicate"] == 300
    assert "24 of 24 variants are near-duplicates" in capsys.readouterr().err
    report([*FLAGS, "--aug_name=plain", "--near_duplicate=0"])
    assert "near-duplicates" not in capsys.readouterr().err


def test_sheets_that_would_fill_the_memory_are_refused(trial, capsys):
    for flags, said in (
        (["--cell=30000"], "--cell: expected 1024 at most, got '30000'"),
        (["--cell=7"], "--cell: expected a whole number from 8"),
    ):
        with pytest.raises(SystemExit) as ended:
            report([*FLAGS, "--aug_name=plain", *flags])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
    many = {"a": {0: [{}] * 12, 1: [{}] * 3}, "b": {0: [{}] * 4, 1: []}}
    sheets.check_width(many, 11, 1022)  # 1 + 11 + 4 pictures and the gaps between them
    with pytest.raises(
        UserError, match=r"--variants: got 12, which gives rows of 17 pictures of --"
    ):
        sheets.check_width(many, 12, 1022)
    assert not Path("output/e/report").exists()


def test_a_sheet_of_large_pictures_has_fewer_rows(trial, capsys, monkeypatch):
    monkeypatch.setattr(sheets, "SHEET_SIDE", 400)
    report([*FLAGS, "--aug_name=plain", "--variants=1", "--cell=97", "--classes", "cat",
                 "stop sign", "toy train"])  # fmt: skip
    assert Image.open("output/e/report/seed=0_ex=2.png").height < 400
    assert "sheets have the first 3 rows" not in capsys.readouterr().err  # 3 rows are all
    report([*FLAGS, "--aug_name=plain", "--variants=1", "--cell=197", "--classes", "cat"])
    assert "sheets have the first 1 row; the page has all" in capsys.readouterr().err


def test_classes_without_a_photo_are_one_line(trial, capsys):
    Path("photos/val/later").mkdir()
    draw_photo(Path("photos/val/later/0.png").resolve(), (1, 2, 3), 0)
    with pytest.raises(SystemExit):
        report([*FLAGS, "--aug_name=plain", "--classes", "later"])
    assert "error: no chosen class has a photo" in capsys.readouterr().err


def test_seconds_where_records_have_them(trial):
    folder = Path("output/e/plain/seed=0_ex=2")
    records = read_records(folder)
    append(folder, 0, records[0] | {"seconds": 1.23456}, records[1] | {"seconds": float("nan")})
    report([*FLAGS, "--aug_name=plain"])
    assert [v.get("seconds") for v in page_data()["variants"][:3]] == [1.235, None, None]
    assert page_data()["sets"][0]["seconds"] is None


def test_seconds_that_the_commands_have_noted(trial, browser):
    for trial_seed, images, seconds in ((0, 4, 3.0), (0, 8, 3.0), (1, 1, 99.0)):
        write_work("plain", trial_seed, images, seconds)
    report([*FLAGS, "--aug_name", "plain", "sco red#1"])
    assert [each["seconds"] for each in page_data()["sets"]] == [0.5, None]
    browser.open(Path("output/e/report/seed=0_ex=2.html").resolve().as_uri())
    assert [row[-1] for row in cells(browser, "methods")] == ["seconds per image", "0.50", "–"]


def write_work(method: str, seed: int, images: int, seconds: float) -> None:
    """A line as a command leaves it in timing/."""
    work = Work(GENERATE, method, seed, 2, "cpu", images, seconds)
    path = Path("output/e/timing/host-1.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(asdict(work)) + "\n")


def test_many_pictures_stay_outside_the_page(trial):
    report([*FLAGS, "--aug_name", "sco red#1", "--embed=23"])
    data, folder = page_data(), Path("output/e/report")
    assert not any("image" in variant for variant in data["variants"])
    assert [p["image"] for p in data["photos"][:2]] == [
        "seed=0_ex=2/photos/000000.webp", "seed=0_ex=2/photos/000001.webp"]  # fmt: skip
    assert all((folder / photo["image"]).is_file() for photo in data["photos"])
    report([*FLAGS, "--aug_name", "sco red#1", "--embed=24"])
    assert all(photo["image"].startswith("data:") for photo in page_data()["photos"])


def test_nothing_made_is_one_line(trial, capsys):
    with pytest.raises(SystemExit) as end:
        report([*FLAGS, "--aug_name", "plain", "none"])
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err == "report.py: error: no synthetic images in output/e/none/seed=0_ex=2\n"
    assert not Path("output/e/report").exists()


def test_a_broken_image_is_named(trial, capsys):
    (Path("output/e/plain/seed=0_ex=2") / "000001-001.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        report([*FLAGS, "--aug_name=plain"])
    err = capsys.readouterr().err.splitlines()[-1]
    assert "cannot read image output/e/plain/seed=0_ex=2/000001-001.png" in err
    assert not Path("output/e/report/seed=0_ex=2.html").exists()


def test_of_two_scores_the_later_counts(trial):
    folder = Path("output/e/plain/seed=0_ex=2")
    append(folder, 1, {"file_name": "a.png", "score": 0.1, "kept": False},
           {"file_name": "b.png", "score": 0.2, "kept": True})  # fmt: skip
    append(folder, 2, {"file_name": "a.png", "score": 0.9, "kept": True}, "{torn \"score\"\n",
           '["score"]\n', '{"file_name": "c.png", "sco')  # fmt: skip
    other = folder / "records" / "0123456789ab.9.filter.jsonl"  # of other settings
    other.write_text('{"file_name": "b.png", "score": 0.7, "kept": false}\n')
    assert read_scores(folder) == {
        "a.png": {"score": 0.9, "kept": True}, "b.png": {"score": 0.2, "kept": True}}  # fmt: skip


def test_change_counts_a_small_object_and_leaves_out_faint_noise():
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    noisy = np.clip(photo + random.normal(0, 3, photo.shape), 0, 255).astype(np.uint8)
    edited = photo.copy()
    edited[:12, :16] = 255 - edited[:12, :16] // 2  # a 64th of the picture
    of = {name: reduced(Image.fromarray(pixels))
          for name, pixels in (("photo", photo), ("noisy", noisy), ("edited", edited))}  # fmt: skip
    assert change_of(of["photo"], of["photo"]) == 0
    assert change_of(of["photo"], of["noisy"]) < NEAR_DUPLICATE
    assert change_of(of["photo"], of["edited"]) > 2 * NEAR_DUPLICATE
    grey = [reduced(Image.new("RGB", (40, 30), (v, v, v))) for v in (10, 200)]
    assert change_of(*grey) == 190


def test_data_cannot_leave_its_script_element():
    strings = ["</script>", "<!--", "\u2028", "\udc80", 'a"b', "ü"]
    text = script_json(strings)
    assert "<" not in text
    text.encode("ascii")
    assert json.loads(text) == strings


def test_sheet_with_rows_of_different_lengths():
    red, blue = Image.new("RGB", (30, 10), "red"), Image.new("RGB", (10, 10), "blue")
    sheet = contact_sheet([("a", [[red], [blue, blue]]), ("b" * 300, [[red], []])], ["x", "y"], 20)
    assert sheet.height > 2 * 20
    assert sheet.width < 8 * 20 + 30  # a long name is cut
    colours = [colour for _, colour in sheet.getcolors(1 << 20)]
    assert (255, 0, 0) in colours and (0, 0, 255) in colours


# --- edits of a layout and a place -----------------------------------------------------------


@pytest.fixture
def pasted(photos, workdir):
    """Sets `plain` and `pasted`; the latter leaves out the first photo of cats."""
    dataset, _ = make_images("plain")
    first = dataset.sources()[0]
    _, folder = make_images("pasted", repeats=4, aug=Pasting, left_out={first: REASON})
    with RecordWriter(places_dir(folder), "x", (0, 1)) as writer:
        writer.write({"file_name": "000001.png", "prompt": "a bench", "sha256": "a" * 64})
    return first


def test_places_and_layouts_are_packed(pasted):
    report([*FLAGS, "--aug_name", "plain", "pasted"])
    data = page_data()
    assert data["places"] == [
        "a desk", "a bench (000001.png)", "the photo cat/<b>.png without its object"]  # fmt: skip
    assert [each["left_out"] for each in data["sets"]] == [{}, {"0": REASON}]
    moved = [85, -6, -16, 4, 1, -66, 100, 126]
    own = [{key: v[key] for key in ("photo", "place", "layouts") if key in v}
           for v in data["variants"] if v["set"] == 1][:4]  # fmt: skip
    assert own == [
        {"photo": 1, "place": 0, "layouts": [moved]},
        {"photo": 1, "place": 1, "layouts": [moved]},
        {"photo": 1, "place": 2},
        {"photo": 1, "place": 2, "layouts": [moved]},
    ]
    of_edits = [each for each in data["settings"] if each["aug"] != ["stub"]]
    assert len(of_edits) == 3  # all photos and places share them
    assert not any(set(each) & set(Pasting.details) for each in of_edits)
    assert [each.get("prompt") for each in of_edits] == [None, "", "a photo"]


SHARES = st.floats(-1, 1)


@given(st.builds(
    Layout, st.floats(0.01, 9), st.floats(-180, 180), st.tuples(SHARES, SHARES), st.booleans(),
    st.tuples(SHARES, st.floats(0.5, 2), st.floats(0.5, 2)),
))  # fmt: skip
def test_whole_numbers_are_close(layout):
    details = layout.details()
    layouts = whole_layouts({key: [None, value] for key, value in details.items()})
    scale, angle, (right, down), mirror, (hue, *factors) = details.values()
    exact = [100 * scale, angle, 100 * right, 100 * down, mirror, 360 * hue,
             *(100 * factor for factor in factors)]  # fmt: skip
    found = layouts[0] if layouts else [100, 0, 0, 0, 0, 0, 100, 100]
    assert np.abs(np.subtract(found, exact)).max() < 0.5 + 1e-9


JUNK = [None, [], [[]], 1.5, "x", ["x"], [{}], [float("nan")], [float("inf")], [[1, None]], [1, 2]]


@given(st.sampled_from([*LAYOUT.details()]), st.sampled_from(JUNK))
def test_what_only_has_the_name_of_a_layout_is_none(key, junk):
    record = {key: [value] for key, value in LAYOUT.details().items()}
    assert whole_layouts(record) is not None
    assert whole_layouts(record | {key: junk}) is None


def test_layouts_of_several_edits_and_of_none():
    unlike = {key: [None, value, "other"] for key, value in LAYOUT.details().items()}
    assert whole_layouts(unlike) is None
    both = {key: [value, None, value] for key, value in LAYOUT.details().items()}
    assert whole_layouts(both) == 2 * [[85, -6, -16, 4, 1, -66, 100, 126]]
    assert whole_layouts({key: [None] for key in both}) == []
    assert whole_layouts({key: [value] for key, value in Layout().details().items()}) == []


def test_sheets_say_why_a_photo_was_left_out(pasted, monkeypatch):
    rows = []
    monkeypatch.setattr(sheets, "contact_sheet",
                        lambda of, *rest: rows.append(of) or contact_sheet(of, *rest))  # fmt: skip
    report([*FLAGS, "--aug_name", "plain", "pasted", "--classes", "cat"])
    overview, of_class = rows
    name = Path(pasted).name
    (first, groups), (second, _) = of_class
    assert (first, list(map(len, groups))) == (f"{name}\n{REASON}", [1, 3, 0])
    assert "\n" not in second
    assert [list(map(len, groups)) for _, groups in overview] == [[1, 3, 4]]  # the second photo


def test_names_of_several_lines_stand_below_each_other():
    white = Image.new("RGB", (20, 20), "white")

    def ink(name):
        pixels = np.asarray(contact_sheet([(name, [[white]])], [""], 60).convert("L")) < 128
        return pixels.any(axis=1).sum(), pixels.any(axis=0).sum()

    (height, width), (twice, same) = ink("HH"), ink("HH\nHH")
    assert (twice, same) == (2 * height, width)
    assert width > 0


# --- in a browser ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(trial, browser):
    """Address of a page that shows both sets; what the browser complains of fails the test."""
    report([*FLAGS, "--aug_name", "plain", "sco red#1"])
    browser.window(1280, 900)
    yield Path("output/e/report/seed=0_ex=2.html").resolve().as_uri()
    assert browser.complaints == []


def found(browser) -> str:
    return browser.run("document.getElementById('found').textContent")


def choose(browser, name, value):
    """Choose a value of a filter as a person does."""
    browser.run(f"""(field => {{
        field.value = {json.dumps(value)};
        field.dispatchEvent(new Event("change", {{bubbles: true}}));
    }})(document.querySelector("[name={name}]"))""")


def cells(browser, table) -> list[list[str]]:
    return browser.run(f"[...document.querySelectorAll('#{table} tr')].map("
                       "row => [...row.children].map(cell => cell.textContent))")  # fmt: skip


def test_page_opens_counts_and_asks_no_network(browser, page):
    browser.open(page)
    assert browser.requests == [page]  # everything is in it
    assert browser.run("document.title") == "e · seed 0, 2 examples per class"
    assert found(browser) == "40 variants of 8 photos"
    assert browser.run("document.querySelectorAll('article').length") == 8
    assert browser.run("document.querySelectorAll('.variant').length") == 40
    browser.wait_for("[...document.images].slice(0, 4).every(i => i.complete && i.naturalWidth)")
    assert cells(browser, "methods") == [
        ["", "images", "near-duplicates", "marked", "mean score"],
        ["plain", "24", "8", "0", "–"],
        ["sco red#1", "16", "8", "5", "0.750"],
    ]
    assert cells(browser, "classes") == [
        ["", "photos", "plain", "sco red#1"],
        *([name, "2", "6", "4"] for name in (EVIL_CLASS, "cat", "stop sign", "toy train")),
    ]


def test_names_and_prompts_are_text(browser, page):
    browser.open(page)
    assert browser.run("typeof hacked") == "undefined"
    assert browser.run("document.querySelector('article h2').textContent") == EVIL_CLASS
    assert browser.run("document.querySelector('[name=class]').options[1].value") == EVIL_CLASS
    browser.hover(".variant")
    assert browser.run("document.querySelector('#tip dd').textContent") == EVIL_PROMPT
    browser.run("document.querySelector('.variant').click()")
    assert EVIL_CLASS in browser.run("document.getElementById('detail-title').textContent")
    assert browser.run("typeof hacked") == "undefined"


@pytest.mark.parametrize(
    "address, expected",
    [
        ("class=cat", "10 variants of 2 photos"),
        ("method=sco+red%231", "16 variants of 8 photos"),
        ("strength=0.75", "8 variants of 8 photos"),
        ("class=cat&method=plain&strength=0.5", "2 variants of 2 photos"),
        ("from=0.95", "6 variants of 3 photos"),
        ("from=0.2&to=0.35", "2 variants of 1 photo"),
        ("kept=no", "5 variants of 3 photos"),
        ("kept=yes&near=only", "5 variants of 5 photos"),
        ("near=hidden", "24 variants of 8 photos"),
        ("class=cat&from=5", "0 variants of 0 photos"),
        ("class=unknown&nonsense=1&page=99", "40 variants of 8 photos"),
    ],
)
def test_an_address_filters(browser, page, address, expected):
    browser.open(f"{page}#{address}")
    assert found(browser) == expected


def test_filters_change_the_address_and_reset(browser, page):
    browser.open(page)
    choose(browser, "class", EVIL_CLASS)
    browser.wait_for("document.querySelectorAll('article').length === 2")
    choose(browser, "strength", "0.25")
    browser.wait_for("document.querySelectorAll('.variant').length === 4")
    assert browser.run("new URLSearchParams(location.hash.slice(1)).get('class')") == EVIL_CLASS
    assert found(browser) == "4 variants of 2 photos"
    browser.run("document.querySelector('[type=reset]').click()")
    browser.wait_for("document.querySelectorAll('article').length === 8")
    assert browser.run("document.querySelector('[name=class]').value") == ""
    browser.run("document.querySelector('#classes td a').click()")
    browser.wait_for("document.querySelectorAll('.variant').length === 6")


def test_hover_shows_prompt_and_parameters(browser, page):
    browser.open(f"{page}#method=sco+red%231")
    assert browser.run("document.getElementById('tip').hidden")
    browser.hover(".variant")
    text = browser.run("document.getElementById('tip').innerText").split("\n")
    assert [EVIL_PROMPT in text, "m & m" in text, "strength" in text] == [True] * 3
    assert "0 of 255, a near-duplicate" in text
    assert browser.run("document.querySelector('.variant .badges').innerText.split('\\n')") == [
        "≈ source", "marked"]  # fmt: skip
    inside = "(r => r.left >= 0 && r.right <= innerWidth && r.top >= 0 && r.bottom <= innerHeight)"
    assert browser.run(f"{inside}(document.getElementById('tip').getBoundingClientRect())")
    browser.hover("h1")
    assert browser.run("document.getElementById('tip').hidden")


def test_keyboard_alone_is_enough(browser, page):
    browser.open(page)
    for _ in range(60):
        browser.press("Tab")
        if browser.run("document.activeElement.matches('.variant')"):
            break
    label = "document.activeElement.getAttribute('aria-label')"
    assert browser.run(label) == (
        f"{EVIL_CLASS}, plain, strength 0.25, near-duplicate of the source")  # fmt: skip
    assert not browser.run("document.getElementById('tip').hidden")
    browser.press("ArrowRight")
    assert browser.run(label) == f"{EVIL_CLASS}, plain, strength 0.5"
    browser.press("Enter")
    assert browser.run("document.getElementById('detail').open")
    browser.press("ArrowRight")
    assert browser.run("document.getElementById('detail-title').textContent").endswith("0.75")
    file = "document.querySelector('#detail a')"
    assert browser.run(f"{file}.textContent") == "000000-002.png"
    assert Path(browser.run(f"decodeURI(new URL({file}.href).pathname)")).is_file()
    browser.press("Escape")
    # The dialog gives the focus back to where it was, and then the page moves it on.
    browser.wait_for(f"{label}.endsWith('plain, strength 0.75')")
    assert not browser.run("document.getElementById('detail').open")


def test_pictures_outside_the_page_are_found_lazily(browser, trial):
    report([*FLAGS, "--aug_name", "sco red#1", "--embed=0"])
    path = Path("output/e/report/seed=0_ex=2.html").resolve()
    browser.window(800, 300)
    browser.open(path.as_uri())
    browser.wait_for("[...document.images].slice(0, 3).every(i => i.complete && i.naturalWidth)")
    assert all(url.startswith("file:") for url in browser.requests)
    assert browser.complaints == []
    # One that has gone leaves a word, and the rest as it is.
    (Path("output/e/sco red#1/seed=0_ex=2") / "000000-000.png").unlink()
    browser.open(path.as_uri())
    browser.wait_for("document.querySelector('.variant .missing')")


def test_an_embedded_page_can_be_sent_alone(browser, page, tmp_path):
    (tmp_path / "away").mkdir()
    shutil.move("output/e/report/seed=0_ex=2.html", tmp_path / "away" / "page.html")
    browser.open((tmp_path / "away" / "page.html").as_uri())
    browser.run("document.querySelector('.variant').click()")
    browser.wait_for("[...document.querySelectorAll('#detail img')].every(i => i.naturalWidth)"
                     "&& document.querySelectorAll('#detail img').length === 2")  # fmt: skip
    browser.complaints.clear()  # that the large image is not there


def facts(browser, number: int) -> dict[str, str]:
    """What the details of a variant say, by its number on the page."""
    browser.run(f"showDetail({number})")
    pairs = browser.run("[...document.querySelectorAll('#detail dl *')].map(e => e.textContent)")
    browser.run("detail.close()")
    return dict(zip(pairs[::2], pairs[1::2]))


def test_places_and_layouts_in_words(browser, pasted):
    report([*FLAGS, "--aug_name", "pasted", "plain"])
    address = Path("output/e/report/seed=0_ex=2.html").resolve().as_uri()
    browser.window(1280, 900)
    browser.open(f"{address}#method=pasted")
    moved = {
        "object size": "85 % of its own", "object turned": "6° clockwise",
        "object moved": "16 % of the width to the left, 4 % of the height down",
        "object mirrored": "left and right", "object colour": "hue −66°, brightness 126 %",
    }  # fmt: skip
    drawn, pasted_on, unmoved, after = (facts(browser, number) for number in range(4))
    assert drawn.items() >= (moved | {"place": "a desk", "strength": "1"}).items()
    assert (
        pasted_on.items()
        >= (
            moved | {"place": "a bench (000001.png)", "strength": "–", "guidance scale": "–"}
        ).items()
    )
    assert unmoved["place"] == "the photo cat/<b>.png without its object"
    assert not moved.keys() & unmoved.keys()
    assert after.items() >= (moved | {"prompt": "a photo", "strength": "0.5 + –"}).items()
    assert not any("prompt" in each for each in (drawn, pasted_on, unmoved))
    assert not any("null" in text for text in (drawn | pasted_on | after).values())
    assert browser.run("visible.map(button => button.ariaLabel)")[:2] == [
        "cat, pasted, strength 1", "cat, pasted"]  # fmt: skip
    assert browser.complaints == []


def test_photos_left_out_and_edits_without_a_strength(browser, pasted):
    report([*FLAGS, "--aug_name", "pasted", "plain"])
    address = Path("output/e/report/seed=0_ex=2.html").resolve().as_uri()
    browser.open(address)
    assert [row[:3] for row in cells(browser, "methods")] == [
        ["", "images", "photos left out"], ["pasted", "20", "1"], ["plain", "18", "0"]]  # fmt: skip
    text = "document.querySelector('article').innerText"
    assert f"pasted\n\nleft out, as {REASON}" in browser.run(text)
    assert browser.run("[...document.querySelector('[name=strength]').options].map(o => o.value)"
                       ) == ["", "–", "0.25", "0.5", "0.5 + –", "0.75", "1"]  # fmt: skip
    for choice, variants in (("–", 10), ("0.5 + –", 5), ("1", 5)):
        choose(browser, "strength", choice)
        said = f"'{variants} variants of 5 photos'"
        browser.wait_for(f"document.getElementById('found').textContent === {said}")
    browser.open(f"{address}#method=plain")
    assert "left out" not in browser.run(text)
    assert browser.complaints == []


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_and_dark_colours(browser, page, dark):
    browser.window(360, 740, dark=dark, phone=True)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == 360
    colour = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) < 150) == dark
    browser.run("document.querySelector('.variant').click()")
    assert browser.run("document.getElementById('detail').scrollWidth") <= 360


def test_text_has_contrast(browser, page):
    """At least 4.5 to 1, the AA level of WCAG 2.2, in both schemes."""

    def luminance(colour):
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [("text", "card"), ("soft", "card"), ("soft", "ground"), ("accent", "card"),
             ("warn", "warn-ground"), ("bad", "bad-ground")]  # fmt: skip
    for dark in (False, True):
        browser.window(1280, 900, dark=dark)
        browser.open(page)
        for names in pairs:
            low, high = sorted(luminance(browser.run(f"""(node => {{
                document.body.append(node);
                node.style.color = "var(--{name})";
                return getComputedStyle(node).color;
            }})(document.createElement("i"))""")) for name in names)  # fmt: skip
            assert (high + 0.05) / (low + 0.05) >= 4.5, (names, dark)


def many_records(variants_per_photo: int, examples_per_class: int) -> None:
    """50,000 images of ten classes, all links to one file, with records and scores."""
    for split, count in (("train", examples_per_class), ("val", 1), ("test", 1)):
        for label in range(10):
            for number in range(count):
                path = Path(f"photos/{split}/class {label}/{number:05d}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 24), (25 * label, number % 256, 99)).save(path)
    dataset = build_dataset(
        "folder", "train", data_dir="photos", examples_per_class=examples_per_class
    )
    folder = Path(f"output/e/aug/seed=0_ex={examples_per_class}")
    (folder / "records").mkdir(parents=True)
    identity = write_config(folder, {"a": 1}, {})
    Image.effect_noise((64, 48), 60).convert("RGB").save("noise.png")
    sources = dataset.sources()
    with open(folder / "records" / f"{identity}.1.jsonl", "w") as file:
        for idx in range(len(dataset)):
            label = dataset.get_label_by_idx(idx)
            for repeat in range(variants_per_photo):
                name = f"{idx:06d}-{repeat:03d}.png"
                layout = Layout(0.5 + idx % 97 / 90, repeat, (idx % 89 / 90, 0.1), True)
                os.link("noise.png", folder / name)
                record = {
                    "file_name": name, "label": label, "class_name": dataset.class_names[label],
                    "source": sources[idx], "index": idx, "repeat": repeat, "seconds": 1.5,
                    "prompt": f"a photo of class {label}", "strength": [[0.25, 0.5][repeat % 2]],
                    "score": idx * repeat / 50_000, "kept": True,
                    "other_photo": [sources[repeat % len(sources)]],
                    **{key: [value] for key, value in layout.details().items()},
                }  # fmt: skip
                file.write(json.dumps(record) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize("variants_per_photo", [10, 1000])
def test_fifty_thousand_images(browser, workdir, variants_per_photo):
    examples = 5_000 // variants_per_photo
    many_records(variants_per_photo, examples)
    report([*FLAGS[:-1], f"--examples_per_class={examples}"])
    path = Path(f"output/e/report/seed=0_ex={examples}.html").resolve()
    assert path.stat().st_size < 10e6
    browser.window(1280, 900)
    seconds = browser.open(path.as_uri())
    print(f"\n{path.stat().st_size / 1e6:.1f} MB, open after {seconds:.1f} s")
    assert seconds < 10
    assert found(browser) == f"50,000 variants of {50_000 // variants_per_photo:,} photos"
    assert 0 < browser.run("document.images.length") < 450
    browser.wait_for("document.images[1].naturalWidth === 64")
    pages = int(browser.run("document.getElementById('of').textContent").split()[1])
    browser.run("document.getElementById('next').click()")
    browser.wait_for("document.querySelector('[name=page]').value === '2'")
    for number in (pages, 1):
        choose(browser, "page", str(number))
        browser.wait_for(f"document.querySelector('[name=page]').value === '{number}'")
    started = "performance.now()"
    before = browser.run(started)
    choose(browser, "class", "class 7")
    browser.wait_for("document.getElementById('found').textContent.startsWith('5,000 variants')")
    assert browser.run(started) - before < 3000
    choose(browser, "strength", "0.5")
    browser.wait_for("document.getElementById('found').textContent.startsWith('2,500 variants')")
    if variants_per_photo == 1000:
        browser.run("document.querySelector('.sets .plain').click()")
        browser.wait_for("document.querySelector('.grid').children.length === 500")
    assert browser.complaints == []
