"""Files of an experiment that people edit or tools cut: what is read of them where they are."""

import dataclasses
import json

import pytest

from semantic_aug import UserError
from semantic_aug.experiment.names import Trial, fine_tuned_dir
from semantic_aug.settings.classification import Classification
from semantic_aug.settings.common import Run
from semantic_aug.settings.generation import Generation
from semantic_aug.stages.aggregate import classes_of
from semantic_aug.stages.classified_photos import generation_command
from semantic_aug.stages.common import arguments_of
from semantic_aug.stages.edits import EDIT_FLAGS, list_edits
from semantic_aug.stages.reproduce import flags_of_edits, settings_of
from semantic_aug.words.session import note_loss


@pytest.mark.parametrize(
    ("names", "expected"),
    [(None, []), (7, []), ("cat", []), ({"cat": 1}, []), (["cat", 7], ["cat", "7"])],
)
def test_class_names_are_a_list_of_texts_or_unknown(tmp_path, names, expected):
    trial = Trial(0, 1)
    config = fine_tuned_dir(tmp_path, trial) / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"arguments": {"class_names": names}}))
    assert classes_of(tmp_path, trial) == expected


def test_validation_losses_go_on_after_damaged_lines(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_bytes(b"step,loss\n1,0.5\nx,0.4\n\xff\xfe\n3\n,\n2,nan\n9,0.1\n4,0.")
    note_loss(path, 5, 0.25)
    assert path.read_text() == "step,loss\n1,0.5\n2,nan\n4,0.\n5,0.250000\n"


RUN = Run("-", dataset="-")
SETTINGS = Generation(aug=["real-guidance"], probs=[0.5, 0.5])
ONE = dataclasses.replace(SETTINGS, probs=None)  # settings of one edit


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_path", 7), ("lora", {"a": 1}), ("model", []), ("prompt", [3]),
        ("strength", "much"), ("num_inference_steps", "50"), ("low_memory", "no"),
        ("crop_to_object", 1), ("dataset", None), ("dataset", 3), ("aug", 3),
    ],
)  # fmt: skip
def test_arguments_that_no_flags_give_are_named(tmp_path, key, value):
    arguments = arguments_of(RUN, SETTINGS) | {"newer_flag": {}, "older_list": False}
    whole = {"arguments": arguments, "settings": {"edits": list_edits(ONE)}}
    stored = json.loads(json.dumps(whole))
    run, settings = settings_of(tmp_path, stored)
    strength = dataclasses.replace(SETTINGS, strength=(0.5,))  # what not to give it means
    assert (run, settings) == (dataclasses.replace(RUN, older_list=False), strength)
    edits = stored["settings"]["edits"]
    (edits[0] if key in EDIT_FLAGS else stored["arguments"])[key] = value
    with pytest.raises(UserError, match=rf"config\.json is damaged: {key}: got .*, expected"):
        settings_of(tmp_path, stored)


@pytest.mark.parametrize("edits", [None, [], {}, 3, "x", [3], [{}], [{"aug": "real-guidance"}]])
def test_edits_that_no_flags_give_are_named(tmp_path, edits):
    whole = list_edits(ONE)
    flags = flags_of_edits(tmp_path, whole)
    assert list_edits(Generation(**flags)) == whole
    with pytest.raises(UserError, match=r"config\.json is damaged: edits is "):
        flags_of_edits(tmp_path, edits)


@pytest.mark.parametrize("made", [{"command": 3}, {"command": None, "num_synthetic": "x"}, {}])
def test_a_command_that_is_no_text_is_written_anew(tmp_path, made):
    folder = tmp_path / "aug" / "seed=0_ex=1"
    folder.mkdir(parents=True)
    run, settings = Run("e", dataset="folder"), Classification(num_synthetic=4)

    def command():
        (folder / "config.json").write_text(json.dumps({"arguments": made}))
        return generation_command(run, settings, Trial(0, 1), folder)

    anew = "python generate_augmentations.py --experiment_name=e --dataset=folder --num_synthetic=4"
    assert command() == anew
    made = {"command": "python mine.py", "num_synthetic": "many"}
    assert command() == "python mine.py"
    made["num_synthetic"] = 3
    assert command() == "python mine.py --num_synthetic=4"
