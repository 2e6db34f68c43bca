"""Supervised contrastive learning: its loss, its views, and the objective supcon."""

import csv
import json
import math
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, draw_photo
from hypothesis import given
from hypothesis import strategies as st

import train_classifier
from semantic_aug import __main__ as command_line
from semantic_aug.cluster import chain
from semantic_aug.evaluation import contrastive, training
from semantic_aug.evaluation.contrastive import random_view, supervised_contrastive_loss
from semantic_aug.evaluation.results import is_finished
from semantic_aug.evaluation.sampling import Examples, draw_negatives
from semantic_aug.experiment.names import Trial
from semantic_aug.few_shot_dataset import FewShotDataset
from semantic_aug.generative_augmentation import GenerativeAugmentation
from semantic_aug.settings import build_all
from semantic_aug.stages.classifier_settings import method_of, training_options
from semantic_aug.synthesis.records import read_records

# --- the loss --------------------------------------------------------------------------------


def by_equation(anchors, labels, temperature, negatives=(), negative_labels=()) -> float:
    """Equation 2 of arXiv 2004.11362, term by term."""
    z, of_anchors = anchors.double().tolist(), []

    def similar(one, other) -> float:
        return math.exp(sum(a * b for a, b in zip(one, other)) / temperature)

    for i, label in enumerate(labels):
        others = [k for k in range(len(z)) if k != i]
        below = sum(similar(z[i], z[k]) for k in others)
        for negative, its in zip(negatives, negative_labels):
            below += similar(z[i], negative) if its == label else 0
        positives = [p for p in others if labels[p] == label]
        if positives:
            shares = [math.log(similar(z[i], z[p]) / below) for p in positives]
            of_anchors.append(-sum(shares) / len(positives))
    return sum(of_anchors) / max(1, len(of_anchors))


def embeddings(number: int, seed: int = 0) -> torch.Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(number, 5, generator=stream), dim=1)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([0.07, 0.5, 2.0]),
)
def test_the_loss_is_that_of_the_equation(labels, near, temperature):
    """Also of anchors without positives, and of batches of one class."""
    anchors, negatives = embeddings(len(labels)), embeddings(len(near), seed=1)
    found = supervised_contrastive_loss(
        anchors, torch.tensor(labels), temperature, negatives, torch.tensor(near).long()
    )
    expected = by_equation(anchors, labels, temperature, negatives.tolist(), near)
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    if not near:
        without = supervised_contrastive_loss(anchors, torch.tensor(labels), temperature)
        assert torch.equal(found, without)


def gradients(anchors, labels, *near, dtype=torch.float32):
    anchors = anchors.detach().clone().to(dtype).requires_grad_()
    supervised_contrastive_loss(anchors, torch.tensor(labels), 0.07, *near).backward()
    return anchors.grad


def test_an_anchor_without_positives_is_pushed_by_others_and_pulls_nothing():
    anchors = embeddings(5)
    assert gradients(anchors, [0, 1, 2, 3, 4]).count_nonzero() == 0
    of_pair = gradients(anchors, [0, 0, 1, 2, 3])
    assert of_pair.isfinite().all()
    assert (of_pair.abs().sum(dim=1) > 0).all()  # the others stand in the pair's denominators


def test_hard_negatives_of_another_class_change_nothing_for_an_anchor():
    anchors, near = embeddings(4), embeddings(1, seed=1)
    labels = [0, 0, 1, 1]
    before = gradients(anchors, labels)
    of_none = gradients(anchors, labels, near, torch.tensor([2]))
    assert torch.equal(before, of_none)
    of_one = gradients(anchors[:2], [0, 0], near, torch.tensor([0]))
    assert not torch.equal(of_one, gradients(anchors[:2], [0, 0]))
    pushed = near.clone().requires_grad_()
    loss = supervised_contrastive_loss(
        anchors, torch.tensor(labels), 0.07, pushed, torch.tensor([0])
    )
    (of_negative,) = torch.autograd.grad(loss, pushed)
    # Downhill, it moves away from both anchors of its class.
    away = anchors[:2].sum(dim=0)
    assert float((-of_negative[0]) @ away) < 0


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 2]])
def test_gradients_are_finite_in_half_precision(labels):
    near = embeddings(3, seed=1).half(), torch.tensor([0, 1, 1])
    found = gradients(embeddings(6), labels, *near, dtype=torch.float16)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    equal = gradients(torch.ones(4, 4) / 2, [0, 0, 1, 1], dtype=torch.float16)
    assert equal.isfinite().all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hard_negatives_teach_what_a_shortcut_hides(seed):
    """Surroundings tell the classes apart by themselves; only near-misses, which have the
    surroundings without the object, make the embedding look at the object."""
    stream = torch.Generator().manual_seed(seed)

    def vectors(number, surroundings, thing):
        labels = torch.arange(2).repeat_interleave(number)
        found = 0.1 * torch.randn(2 * number, 8, generator=stream)
        found[:, 0] += surroundings * (2 * labels - 1)
        found[:, 1] += thing * (2 * labels - 1)
        return found, labels

    (photos, labels), near = vectors(16, 1.0, 0.5), vectors(16, 1.0, 0.0)
    elsewhere, expected = vectors(100, -1.0, 0.5)
    start = torch.randn(8, 8, generator=stream)

    def accuracy(with_negatives: bool) -> float:
        weights = start.clone().requires_grad_()

        def embedded(found):
            return torch.nn.functional.normalize(found @ weights, dim=1)

        optimizer = torch.optim.SGD([weights], lr=0.1, momentum=0.9)
        for _ in range(200):
            hard = (embedded(near[0]), near[1]) if with_negatives else ()
            loss = supervised_contrastive_loss(embedded(photos), labels, 0.1, *hard)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = embedded(photos)
        middles = torch.stack([found[labels == label].mean(dim=0) for label in (0, 1)])
        nearest = (embedded(elsewhere) @ middles.T).argmax(dim=1)
        return float((nearest == expected).double().mean())

    assert accuracy(with_negatives=False) < 0.1
    assert accuracy(with_negatives=True) > 0.9


# --- what a batch shows ----------------------------------------------------------------------


def test_views_are_drawn_per_image_and_stay_in_range():
    images = torch.rand((1, 3, 24, 20), generator=torch.Generator().manual_seed(1))
    views = random_view(images.expand(40, -1, -1, -1), torch.Generator().manual_seed(0))
    assert views.shape == (40, 3, 24, 20)
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    assert len({tuple(view.flatten().tolist()) for view in views}) == 40
    grey = (views.amax(dim=1) - views.amin(dim=1)).amax(dim=(1, 2)) < 1e-5
    assert 2 <= int(grey.sum()) <= 16  # one of five
    again = random_view(images.expand(40, -1, -1, -1), torch.Generator().manual_seed(0))
    assert torch.equal(views, again)


def test_each_photo_brings_a_hard_negative_of_its_own():
    nothing = torch.zeros(3, dtype=torch.int64)
    examples = Examples([None] * 5, torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3, 4, 5]),
                        torch.tensor([1, 1, 0]))  # fmt: skip
    negatives = Examples([None] * 3, torch.tensor([0, 0, 1]), torch.tensor([0, 2, 2]),
                         torch.tensor([2, 0, 1]))  # fmt: skip
    draws = torch.arange(5).repeat(50, 1)  # three photos, then variants of the first two
    drawn = draw_negatives(examples, negatives, draws, torch.Generator().manual_seed(0))
    found = [set(column) for column in drawn.T.tolist()]
    assert found == [{0, 1}, {-1}, {2}, {0, 1}, {-1}]
    assert examples.photo_of.tolist() == [0, 1, 2, 0, 1]
    assert len(nothing) == negatives.num_photos


# --- the command -----------------------------------------------------------------------------

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 40)}


class Colours(FewShotDataset):
    default_dir = "photos"
    class_names = (*COLOURS,)

    def list_records(self, split):
        for path in self.images_in(self.data_dir / split):
            yield self.record(path, class_name=path.stem.rpartition("_")[0])


class Shifted(GenerativeAugmentation):
    """Stands for the diffusion model."""

    def augment(self, images, labels, metadata, generators):
        turned = [image.rotate(int(torch.randint(360, (), generator=g)))
                  for image, g in zip(images, generators)]  # fmt: skip
        return turned, [[] for _ in turned]


@pytest.fixture
def data(workdir, sketched) -> Path:
    for split, number in (("train", 3), ("val", 2), ("test", 2)):
        for name, colour in COLOURS.items():
            for n in range(number):
                path = workdir / "photos" / split / f"{name}_{n}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_photo(
                    path, colour, seed=100 * len(split) + n + 50 * ("s" in split), size=(20, 20)
                )
    for name in ("id", "ood"):
        folder = workdir / "output/exp" / name / "seed=0_ex=2"
        dataset = Colours(seed=0, examples_per_class=2, generative_aug=Shifted(),
                          synthetic_dir=folder)  # fmt: skip
        dataset.generate_augmentations(2)
    return workdir


def arguments(backbone, *more) -> list[str]:
    common = f"--dataset={__name__}:Colours --experiment_name=exp --examples_per_class=2".split()
    short = ["--num_epochs=2", "--iterations_per_epoch=3", "--batch_size=4", "--device=cpu"]
    supcon = ["--objective=supcon", "--finetune=all", "--contrastive_epochs=3"]
    return [*common, f"--classifier_backbone={backbone}", *short, *supcon, *map(str, more)]


def run(backbone, *more) -> None:
    train_classifier.main(arguments(backbone, *more))


def rows(method: str) -> list[dict]:
    with open(f"output/exp/results/{method}/results_0_2.csv", newline="") as file:
        return list(csv.DictReader(file))


def files_of(method: str) -> dict[str, bytes]:
    folder = Path("output/exp/results") / method
    return {path.name: path.read_bytes() for path in folder.glob("*_0_2.csv")}


def test_three_runs_of_the_thesis_differ_and_repeat(data, resnet, capsys, monkeypatch):
    shown: list = []
    features = training.cached_features
    monkeypatch.setattr(
        training, "cached_features",
        lambda backbone, images, *more: shown.append(images) or features(backbone, images, *more),
    )  # fmt: skip
    run(resnet, "--num_synthetic=0", "--augmentation=none")
    run(resnet, "--aug_name=id", "--augmentation=none", "--compare=real-supcon")
    near = ("--aug_name=id", "--negative_aug_name=ood", "--augmentation=none")
    said = capsys.readouterr().out
    assert "next: python generate_augmentations.py" in said  # after the baseline
    assert said.count("--compare real-supcon") == 0
    run(resnet, *near, "--compare", "real-supcon", "id-supcon")
    said += capsys.readouterr().out
    assert said.splitlines()[-1].startswith("next: python -m semantic_aug.report")
    with open("output/exp/results/id-supcon/summary.csv", newline="") as file:
        gains = [row["gain"] for row in csv.DictReader(file) if row["split"] == "Test"]
    assert [*map(bool, gains)] == [True]  # over real-supcon: there is no other baseline here
    assert "seed=0_ex=2: 4 photos and 8 synthetic images of 2 classes" in said
    assert "seed=0_ex=2: 8 hard negatives" in said
    assert "id-supcon-ood - id-supcon, 2 per class, test:" in said
    found = {name: rows(name) for name in ("real-supcon", "id-supcon", "id-supcon-ood")}
    losses = {
        name: [float(r["value"]) for r in each if r["metric"] == "Contrastive Loss"]
        for name, each in found.items()
    }
    assert all(len(each) == 3 for each in losses.values())
    assert len({*map(tuple, losses.values())}) == 3
    assert {r["split"] for r in found["id-supcon"] if "Contrastive" in r["metric"]} == {"Training"}
    # The head sees photos and positives alone.
    items = [{str(item) for item in images.items} for images in shown]
    assert [len(each) for each in items] == [4, 12, 12]
    assert not any("/ood/" in item for each in items for item in each)
    config = json.loads(Path("output/exp/results/id-supcon-ood/config.json").read_text())[
        "settings"
    ]
    assert config["objective"] == "supcon"
    assert config["contrastive_temperature"] == 0.07
    assert "hard negatives of seed=0_ex=2" in config
    run(resnet, *near, "--method=again")
    assert files_of("again") == files_of("id-supcon-ood")
    # What the default is may be said, and changes nothing.
    run(resnet, *near, "--contrastive_temperature=0.07")
    assert "1 of 1 trials are finished: skipped" in capsys.readouterr().out


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(data, resnet, capsys, monkeypatch):
    near = ("--aug_name=id", "--negative_aug_name=ood")
    monkeypatch.setattr(contrastive, "CHECKPOINT_SECONDS", 0)
    run(resnet, *near, "--method=whole")
    write, epochs = contrastive.Checkpoint.write, []

    def killed(self, state):
        write(self, state)
        epochs.append(len(state["losses"]))
        if len(epochs) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(contrastive.Checkpoint, "write", killed)
        with pytest.raises(BaseException):  # noqa: B017
            run(resnet, *near, "--method=killed")
    folder = Path("output/exp/results/killed")
    left = folder / "contrastive_0_2.pt"
    assert left.is_file()
    assert not is_finished(folder, Trial(0, 2))
    # Of a damaged file, the trial begins anew; of another run, too.
    for name, content in (("damaged", b"x" + left.read_bytes()), ("others", left.read_bytes())):
        shutil.copytree(folder, folder.parent / name)
        (folder.parent / name / left.name).write_bytes(content)
    begun: list[int] = []
    passed = contrastive.draw_epoch
    monkeypatch.setattr(
        contrastive, "draw_epoch",
        lambda examples, options, generator, epoch: begun.append(epoch)
        or passed(examples, options, generator, epoch),
    )  # fmt: skip
    run(resnet, *near, "--method=killed")
    assert begun == [2]
    run(resnet, *near, "--method=damaged")
    assert begun == [2, 0, 1, 2]
    capsys.readouterr()
    run(resnet, *near, "--method=others", "--contrastive_temperature=0.5")
    assert "contrastive_0_2.pt has other settings or another device" in capsys.readouterr().err
    assert begun == [2, 0, 1, 2, 0, 1, 2]
    assert files_of("killed") == files_of("whole") == files_of("damaged") != files_of("others")
    assert not list(Path("output/exp/results").glob("*/*.pt"))
    # A process that is killed after its results leaves a checkpoint, which the next run removes.
    left.write_bytes(b"x")
    run(resnet, *near, "--method=killed")
    assert not left.exists()


def test_weights_that_the_last_step_broke_are_told(data, resnet, capsys):
    with pytest.raises(SystemExit) as ended:
        run(resnet, "--num_synthetic=0", "--contrastive_epochs=1", "--iterations_per_epoch=1",
            "--contrastive_learning_rate=1e30")  # fmt: skip
    assert ended.value.code == 2
    assert "training diverges at --contrastive_learning_rate 1e+30" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--finetune=none"], "--objective supcon trains the backbone"),
        (["--batch_size=1"], "--batch_size 1"),
        (["--contrastive_temperature=0"], "in [0.001, 1000]"),
        (["--contrastive_epochs=0"], "from 1"),
        (["--aug_name=id", "--negative_aug_name=id"], "these images are positives"),
        (["--negative_aug_name=none-there"], "no synthetic images in"),
        (["--classes=red"], "got photos of 'red' alone"),
        (["--backbone_learning_rate=1e-4"], "give --contrastive_learning_rate"),
        (["--objective=cross-entropy"], "--contrastive_epochs belongs to --objective supcon"),
        (["--negative_aug_name=../x"], "--negative_aug_name"),
        (["--negative_aug_name=results"], "--negative_aug_name: 'results' is the name"),
        (["--objective=triplet"], "cross-entropy"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(data, capsys, flags, expected):
    with pytest.raises(SystemExit) as ended:
        run("no/such/model", "--aug_name=id", *flags)
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert ended.value.code == 2
    assert len(error) == 1
    assert expected in error[0]
    assert not Path("output/exp/results").exists()


def test_negatives_without_supcon_are_refused(data, resnet, capsys):
    common = arguments(resnet, "--num_synthetic=0")[:7]
    with pytest.raises(SystemExit) as ended:
        train_classifier.main([*common, "--negative_aug_name=ood", "--num_synthetic=0"])
    assert ended.value.code == 2
    assert "--negative_aug_name belongs to --objective supcon" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_thesis_runs_with_a_small_model(
    workdir, small_model, resnet, monkeypatch, capsys
):
    class InThisProcess:
        """Instead of a process, whose imports take ten seconds for each of seven commands."""

        def __init__(self, line, **_):
            self.words = line[3:]

        def wait(self) -> int:
            command_line.main(self.words)
            return 0

        def terminate(self) -> None:
            """It has ended."""

    monkeypatch.setattr(chain, "subprocess", SimpleNamespace(Popen=InThisProcess))
    small = (
        f"--data_dir {ROOT / 'sample/mvip'} --dataset_args super_class=CarComponent --device cpu "
        f"--classes hex_nut washer --examples_per_class 2 --model_path {small_model} "
        f"--resolution 16 --classifier_backbone {resnet} --image_size 16 --contrastive_epochs 2 "
        "--num_epochs 2 --iterations_per_epoch 2 --num_inference_steps 5 --mixed_precision no "
        "fine_tune: --max_train_steps 2 --initializer_token a --report_to none"
    )
    file = ROOT / "scripts/reproduce/mvip-thesis.args"
    command_line.main(["run", f"@{file}", *small.split()])
    results = Path("output/mvip-thesis/results")
    assert {path.name for path in results.iterdir()} == {"real", "id", "id-ood"}
    assert all(is_finished(results / name, Trial(0, 2)) for name in ("real", "id", "id-ood"))
    said = capsys.readouterr().out
    assert "seed=0_ex=2: 4 photos and 16 synthetic images of 2 classes" in said
    assert "seed=0_ex=2: 16 hard negatives" in said
    for pair in ("id - real", "id-ood - real", "id-ood - id"):
        assert f"{pair}, 2 per class, test:" in said
    strengths = {
        name: read_records(Path("output/mvip-thesis") / name / "seed=0_ex=2")[0]["strength"]
        for name in ("id", "ood")
    }
    assert strengths == {"id": [0.2], "ood": [0.5]}


def test_the_pages_commands_are_such_that_go_together():
    text = (ROOT / "docs/contrastive.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("python ")]
    stages = {"generate_augmentations.py": "generate", "train_classifier.py": "train_classifier"}
    methods = []
    for _, script, *flags in lines:
        stage = stages[script]
        args = chain.parser_of(stage).parse_args(flags)
        _, settings, *_ = build_all(vars(args), *chain.SETTINGS[stage])
        if stage == "train_classifier":
            assert training_options(settings).objective == "supcon"
            methods.append(method_of(settings))
            assert {*settings.compare} <= {*methods}
    assert methods == ["real-supcon", "id-supcon", "id-supcon-ood"]
