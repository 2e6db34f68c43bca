"""One temperature makes confidence fit: against a search by brute force, and where data are few."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semantic_aug.evaluation.calibration import (
    calibrated_error,
    fit_temperature,
    say_at_end,
    write_calibration,
)
from semantic_aug.evaluation.metrics import evaluation
from semantic_aug.experiment.names import Trial


def smoothed_loss(logits, labels, temperature):
    """Cross-entropy with Platt's targets, written another way than where it is minimised."""
    number, classes = logits.shape
    smoothing = classes / (classes - 1) / (number + 2)
    return torch.nn.functional.cross_entropy(
        logits.double() / temperature, labels, label_smoothing=smoothing
    ).item()


@settings(max_examples=30)
@given(
    st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**31), st.floats(0.02, 30)
)  # fmt: skip
def test_no_other_temperature_has_a_lower_loss(classes, number, seed, spread):
    stream = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(number, classes, generator=stream)
    labels = torch.randint(classes, (number,), generator=stream)
    found = fit_temperature(logits, labels)
    assert 0.01 <= found <= 100
    least = smoothed_loss(logits, labels, found)
    for power in range(-40, 41):
        assert least <= smoothed_loss(logits, labels, 10 ** (power / 20)) + 1e-6


def test_logits_that_are_too_large_get_the_factor_back():
    stream = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 4, generator=stream)
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=stream)[:, 0]
    assert fit_temperature(honest, labels) == pytest.approx(1, abs=0.03)
    assert fit_temperature(5 * honest, labels) == pytest.approx(5, abs=0.15)
    assert evaluation(5 * honest, labels).calibration_error > 0.2
    assert calibrated_error(5 * honest, labels, 5.0) < 0.02
    assert calibrated_error(5 * honest, labels, 1.0) == pytest.approx(
        evaluation(5 * honest, labels).calibration_error, abs=1e-6
    )


@pytest.mark.parametrize("number", [1, 4, 100])
def test_of_photos_that_are_all_right_confidence_is_what_so_many_can_show(number):
    labels = torch.arange(number) % 2
    logits = 0.3 * torch.nn.functional.one_hot(labels, 3)
    confidence = (logits / fit_temperature(logits, labels)).softmax(dim=1).amax(dim=1)
    assert confidence.tolist() == pytest.approx([(number + 1) / (number + 2)] * number, rel=1e-4)


@pytest.mark.parametrize(
    "right, spread, why",
    [(False, 2.0, "no better than chance"), (True, 1e-4, "hardly differ"), (True, 0.3, None)],
)
def test_a_search_that_ends_at_its_limit_calibrates_nothing(tmp_path, caplog, right, spread, why):
    labels = torch.arange(40) % 2
    logits = spread * torch.nn.functional.one_hot(labels if right else 1 - labels, 2)
    temperature = fit_temperature(logits, labels)
    say_at_end("seed=0_ex=2", temperature)
    write_calibration(tmp_path, Trial(0, 2), temperature, {"Test": (0.5, 0.5)}, fitted=True)
    (row,) = pd.read_csv(tmp_path / "calibration_0_2.csv").to_dict(orient="records")
    assert row["calibrated"] == ("no" if why else "yes")
    assert len(caplog.messages) == bool(why)
    if why:
        assert caplog.messages[0].startswith("seed=0_ex=2: probabilities are not calibrated")
        assert why in caplog.messages[0] and f" {temperature:g}, since" in caplog.messages[0]


def test_a_class_that_was_not_trained_does_not_matter():
    logits = torch.tensor([[2.0, 1.0], [0.5, 1.5], [1.0, 0.2], [0.3, 0.4]])
    labels = torch.tensor([0, 1, 1, 0])
    never = torch.full((4, 1), -math.inf)
    wider = torch.cat([logits[:, :1], never, logits[:, 1:]], dim=1)
    assert fit_temperature(wider, labels * 2) == fit_temperature(logits, labels)
    assert fit_temperature(wider[:, :2], torch.zeros(4, dtype=torch.long)) == 1.0
