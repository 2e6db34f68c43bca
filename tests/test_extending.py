"""What docs/extending.md shows works as it stands there."""

import json
import re
import sys

import pytest
from conftest import ROOT, images_of

from semantic_aug import Run, generate
from semantic_aug.cli.command import Parser
from semantic_aug.settings import add_flags, build, build_all, compared, setting, settings
from semantic_aug.settings.generation import Generation


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


FOG, SETTING = blocks("docs/extending.md")
(WELDS,) = (block for block in blocks("docs/own-data.md") if "WeldDataset" in block)


def test_a_dataset_and_an_augmentation_take_forty_lines():
    assert len(FOG.splitlines()) <= 40 and len(WELDS.splitlines()) <= 40


@pytest.fixture
def fog(workdir, monkeypatch):
    (workdir / "fog.py").write_text(FOG)
    monkeypatch.syspath_prepend(str(workdir))
    yield
    sys.modules.pop("fog", None)


def test_an_augmentation_of_ones_own(fog, make, photos, small_model):
    assert make("--aug", "fog:Fog", "--strength", "0.8", name="whole")[0] == 0
    for shard in (1, 0):
        flags = ["--aug=fog:Fog", "--strength=0.8", f"--shard_index={shard}", "--num_shards=2"]
        assert make(*flags, name="shared")[0] == 0
    whole, shared = images_of("whole"), images_of("shared")
    assert whole.keys() == shared.keys() and len(whole) == 6
    assert all((whole[name] == shared[name]).all() for name in whole)
    with open("output/e/whole/seed=0_ex=1/metadata.jsonl") as file:
        record = json.loads(file.readline())
    assert record["aug"] == ["fog:Fog"] and 0 < record["strength"][0] <= 0.8

    from fog import Fog

    run = Run("api", dataset="folder", data_dir=photos)
    (made,) = generate(run, aug=Fog(strength=0.8), model=small_model, num_synthetic=2).values()
    assert made.made == 6
    assert make("--aug", "fog:Fog", "real-guidance", "--compose=sequential", name="both")[0] == 0


def test_a_setting_is_one_line():
    scope = {"setting": setting, "settings": settings, "Generation": Generation}
    exec(f"@settings('')\nclass Newer(Generation):\n    {SETTING}", scope)
    newer = scope["Newer"]
    made = build(newer, {"prompt_suffix": "fog"})
    assert compared({}, made)["prompt_suffix"] == "fog"
    assert "prompt_suffix" not in compared({}, build(newer, {}))
    parser = Parser("")
    add_flags(parser, Run, newer)
    given = ["--experiment_name=e", "--dataset=folder", "--prompt-suffix=fog"]
    assert build_all(vars(parser.parse_args(given)), Run, newer)[1] == made
