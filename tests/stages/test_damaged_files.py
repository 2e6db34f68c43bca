"""Files of an experiment that people edit or tools cut: what is read of them where they are."""

import json
from types import SimpleNamespace

import pytest

import aggregate_embeddings
import generate_augmentations
from semantic_aug import UserError
from semantic_aug.experiment.names import Trial, fine_tuned_dir
from semantic_aug.stages.editing import list_edits
from semantic_aug.stages.reproduce import check_arguments, flags_of_edits
from semantic_aug.stages.train_classifier import generation_command
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
    assert aggregate_embeddings.classes_of(tmp_path, trial) == expected


def test_validation_losses_go_on_after_damaged_lines(tmp_path):
    path = tmp_path / "loss.csv"
    path.write_bytes(b"step,loss\n1,0.5\nx,0.4\n\xff\xfe\n3\n,\n2,nan\n9,0.1\n4,0.")
    note_loss(path, 5, 0.25)
    assert path.read_text() == "step,loss\n1,0.5\n2,nan\n4,0.\n5,0.250000\n"


ARGUMENTS = vars(generate_augmentations.parse_args(["--dataset=-", "--experiment_name=-"]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embed_path", 7), ("lora", {"a": 1}), ("model", []), ("prompt", "a photo"),
        ("prompt", [3]), ("strength", ["much"]), ("probs", 1), ("dataset_args", {}),
        ("num_inference_steps", "50"), ("low_memory", "no"), ("crop_to_object", 1),
        ("dataset", None),
    ],
)  # fmt: skip
def test_arguments_that_no_flags_give_are_named(tmp_path, key, value):
    stored = json.loads(json.dumps(ARGUMENTS | {"probs": [0.5, 0.5], "newer_flag": {}}))
    parser = generate_augmentations.build_parser()
    check_arguments(tmp_path, stored, parser)
    with pytest.raises(UserError, match=rf"config\.json is damaged: {key} is "):
        check_arguments(tmp_path, stored | {key: value}, parser)


@pytest.mark.parametrize("edits", [None, [], {}, 3, "x", [3], [{}], [{"aug": "real-guidance"}]])
def test_edits_that_no_flags_give_are_named(tmp_path, edits):
    whole = list_edits(SimpleNamespace(**ARGUMENTS | {"aug": ["real-guidance"]}))
    flags = flags_of_edits(tmp_path, whole)
    assert list_edits(SimpleNamespace(**ARGUMENTS | flags)) == whole
    with pytest.raises(UserError, match=r"config\.json is damaged: edits is "):
        flags_of_edits(tmp_path, edits)


@pytest.mark.parametrize("made", [{"command": 3}, {"command": None, "num_synthetic": "x"}, {}])
def test_a_command_that_is_no_text_is_written_anew(tmp_path, made):
    folder = tmp_path / "aug" / "seed=0_ex=1"
    folder.mkdir(parents=True)
    args = SimpleNamespace(
        dataset="folder", experiment_name="e", aug_name="aug", num_synthetic=4, output_dir="output",
        data_dir=None, crop_to_object=False, dataset_args=[], classes=None,
    )  # fmt: skip

    def command():
        (folder / "config.json").write_text(json.dumps({"arguments": made}))
        return generation_command(args, Trial(0, 1), folder)

    assert command().startswith("python generate_augmentations.py --dataset=folder")
    made = {"command": "python mine.py", "num_synthetic": "many"}
    assert command() == "python mine.py"
    made["num_synthetic"] = 3
    assert command() == "python mine.py --num_synthetic=4"
