"""How prompts name classes."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semantic_aug.words.class_names import STYLES, as_words, older_words, say_classes


@pytest.mark.parametrize(
    "name, words",
    [
        ("bevel_gear", "bevel gear"), ("bevel-gear", "bevel gear"), ("BevelGear", "bevel gear"),
        ("bevelGear", "bevel gear"), ("BevelGear2", "bevel gear 2"), ("gear2", "gear2"),
        ("HexNut_M8", "hex nut M8"), ("GroßesZahnrad", "großes zahnrad"),
        ("HerbaceousVegetation", "herbaceous vegetation"),  # EuroSAT
        ("self-propelled-lawn-mower", "self propelled lawn mower"),  # Caltech-256
        ("faces-easy-101", "faces easy-101"), ("002.american-flag", "002.american flag"),
        ("three-toed_sloth", "three-toed sloth"), ("Faces_easy", "Faces easy"),
        ("Boeing_737-800", "Boeing 737-800"), ("n02085620-Chihuahua", "n02085620-Chihuahua"),
    ],
)  # fmt: skip
def test_names_of_folders_become_words(name, words):
    assert as_words(name) == words


@pytest.mark.parametrize(
    "name",
    [
        "ball bearing", "stop sign", "T-shirt", "t-shirt", "x-ray", "FA-18", "Boeing 737-800",
        "737-800", "DC-10", "Il-76", "ATR-42", "F-16A/B", "iPod", "CD player", "Shih-Tzu",
        "German short-haired pointer", "black-and-tan coonhound", "jack-o'-lantern", "McLaren",
        "DeLorean", "Band Aid", "BMW", "LaTeX", "SUV", "O-Ring", "Airedale", "V8", "001.ak47",
        "Mercedes-Benz C-Class Sedan 2012", "AM General Hummer SUV 2000",
    ],
)  # fmt: skip
def test_other_names_stay(name):
    assert as_words(name) == name


letters = st.text(st.sampled_from("_- aßéoXÉB'.27"), min_size=1, max_size=14)


@given(st.one_of(letters, st.text(min_size=1, max_size=10)))
@example("_")
@example("_BevelGear")
@example("ab-cd-efGh")
def test_words_stay_words_and_lose_no_letter(name):
    words = as_words(name)
    assert words.strip() or not older_words(name).strip()
    assert words and as_words(words) == words
    kept = [each for each in name.lower() if each not in "_- "]
    assert [each for each in words.lower() if each not in "_- "] == kept
    if " " in name and "_" not in name:
        assert words == name


def test_styles():
    names = ["bevel_gear", "BevelGear"]
    assert say_classes(names, "words") == dict.fromkeys(names, "bevel gear")
    assert say_classes(names, "raw") == dict(zip(names, names))
    assert say_classes(names, None) == dict(zip(names, ["bevel gear", "BevelGear"]))
    assert set(STYLES) == {"words", "raw", None}
