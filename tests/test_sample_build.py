"""What the trainings of the sample share: budgets, resuming, whole files, packed meshes."""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

BUILD = Path(__file__).resolve().parents[1] / "sample" / "build"


@pytest.fixture(scope="module")
def build():
    """sample/build on the path of modules, as its scripts see it."""
    sys.path.insert(0, str(BUILD))
    import parts
    import training

    yield argparse.Namespace(parts=parts, training=training)
    sys.path.remove(str(BUILD))


def arguments(training, *flags):
    parser = argparse.ArgumentParser()
    training.add_budget(parser, 40)
    parser.add_argument("--lr", type=float, default=0.1)
    return parser.parse_args(flags)


def fit(training, folder, *flags, until=None, poison=None):
    """Train one weight towards noise drawn by (seed, step); returns the run."""
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    args = arguments(training, *flags)
    run = training.Run(folder, {"m": module}, optimizer, args, decay=0.9, warmup=5)
    while run.step != until and run.goes_on():
        rng = training.generator(3, run.step, torch.device("cpu"))
        x = torch.randn(4, 3, generator=rng)
        loss = module(x).square().mean()
        training.update(optimizer, loss * (torch.nan if run.step == poison else 1))
        run.advance({"loss": loss})
        if args.seconds:
            time.sleep(0.01)
    return run


def test_a_killed_training_goes_on_with_the_same_numbers(build, tmp_path):
    whole = fit(build.training, tmp_path / "whole", "--steps", "12")
    fit(build.training, tmp_path / "parts", "--steps", "12", until=7).save()
    resumed = fit(build.training, tmp_path / "parts", "--steps", "12")
    assert resumed.first == 7 and resumed.step == whole.step == 12
    for name, value in whole.modules["m"].state_dict().items():
        assert torch.equal(value, resumed.modules["m"].state_dict()[name])
        assert torch.equal(whole.average["m"][name], resumed.average["m"][name])


def test_the_rate_falls_to_its_end_by_the_clock(build, tmp_path):
    begun = time.time()
    run = fit(build.training, tmp_path, "--seconds", "0.5")
    assert 0.5 <= time.time() - begun < 3 and run.steps == float("inf") and run.done == 1
    assert run.optimizer.param_groups[0]["lr"] < 0.03  # of 0.1: the cosine came to its end
    late = fit(build.training, tmp_path, "--deadline", str(time.time() - 1))
    assert late.step == run.step  # nothing is trained after the deadline


def test_steps_end_a_training_where_no_time_is_given(build, tmp_path):
    assert fit(build.training, tmp_path / "default").step == 40
    assert fit(build.training, tmp_path / "both", "--steps", "6", "--seconds", "60").step == 6


def test_the_rate_warms_up_holds_and_falls(build):
    rate = build.training.learning_rate
    assert rate(0, 0.0, 1.0, warmup=10) == pytest.approx(0.1)
    assert rate(4, 0.08, 1.0, warmup=10) == pytest.approx(0.8)  # a tenth of the run at most
    assert rate(50, 0.5, 1.0) == rate(500, 0.65, 1.0) == 1.0
    assert rate(500, 0.825, 1.0) == pytest.approx(0.51) and rate(500, 1.0, 1.0) == 0.02


def test_a_gradient_that_is_not_finite_changes_nothing(build, tmp_path):
    before = fit(build.training, tmp_path / "a", "--steps", "9", until=4).modules["m"]
    after = fit(build.training, tmp_path / "b", "--steps", "9", until=5, poison=4).modules["m"]
    assert torch.equal(before.weight, after.weight) and torch.equal(before.bias, after.bias)


def test_a_folder_is_whole_or_absent(build, tmp_path):
    out = tmp_path / "model"
    build.training.write_folder(out, lambda part: (part / "a").write_text("1"))

    def fail(part):
        (part / "a").write_text("2")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        build.training.write_folder(out, fail)
    assert (out / "a").read_text() == "1"
    config = '{"_name_or_path": "/home/me/unet", "channels": 4}'
    build.training.write_folder(out, lambda part: (part / "config.json").write_text(config))
    assert [p.name for p in out.iterdir()] == ["config.json"]
    assert json.loads((out / "config.json").read_text()) == {"channels": 4}


def test_weights_keep_their_fingerprint_in_float16(build):
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 8)
    name = build.training.fingerprint(module)
    assert build.training.fingerprint(module.half().float()) == name
    module.weight.data[0, 0] += 1
    assert build.training.fingerprint(module) != name


def test_packed_meshes_come_back_with_their_normals(build, tmp_path):
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], "f4")
    faces = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1]], np.int32)
    normals = build.parts.corner_normals(corners.astype(float), faces)
    assert np.allclose(np.abs(normals[:2]), [1, 0, 0]) and np.allclose(
        np.abs(normals[4:]), [0, 1, 0]
    )
    target = tmp_path / "a" / "meshes" / "washer" / "3.npz"
    build.parts.save_mesh(target, corners, faces, normals)
    build.parts.pack_meshes(tmp_path / "a", ["washer"], tmp_path / "packed.npz")
    build.parts.main(["--cache", str(tmp_path / "b"), "--unpack", str(tmp_path / "packed.npz")])
    kept = build.parts.load_mesh(tmp_path / "a", "washer", 3)
    again = build.parts.load_mesh(tmp_path / "b", "washer", 3)
    for one, other in zip(kept, again, strict=True):
        assert one.dtype == other.dtype and np.allclose(one, other, atol=1e-6)
    with pytest.raises(SystemExit, match="no meshes of hinge"):
        build.parts.pack_meshes(tmp_path / "a", ["washer", "hinge"], tmp_path / "more.npz")
