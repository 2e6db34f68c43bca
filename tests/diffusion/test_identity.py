"""What weights are called in settings and records, and folders that have an older name of them."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_clip, build_pipeline, images_of
from safetensors.torch import save_file

import fine_tune
import generate_augmentations
from semantic_aug import UserError
from semantic_aug.diffusion import identity
from semantic_aug.diffusion.identity import identity_of
from semantic_aug.diffusion.inspecting import inspect_model
from semantic_aug.diffusion.loading import load_pipeline
from semantic_aug.experiment.config import Identity, read_config
from semantic_aug.synthesis.records import read_records
from semantic_aug.words.checkpoints import differences
from semantic_aug.words.embeddings import read_header

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"
NAMES = ("cat", "stop sign", "toy train")


@pytest.fixture
def model(small_model, tmp_path) -> Path:
    """A copy of the small model, to be changed."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


# --- folders ---------------------------------------------------------------------------------


def test_identity_stays_when_a_folder_moves(small_model, tmp_path):
    here = inspect_model(small_model).identity
    for name in ("copy", ".hidden/copy"):
        folder = shutil.copytree(small_model, tmp_path / name)
        assert inspect_model(str(folder)).identity == here
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / ".cache" / "x.json").write_text("{}")
    assert inspect_model(str(tmp_path / "copy")).identity == here
    assert here.startswith("sha256:")


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("file", [UNET, TEXT_ENCODER, "model_index.json"])
def test_identity_changes_with_any_small_file(model, file, at):
    before = inspect_model(str(model)).identity
    content = bytearray((model / file).read_bytes())
    if file == "model_index.json":
        content += b"\n"
    else:
        content[int(at * (len(content) - 1))] ^= 1
    (model / file).write_bytes(content)
    assert inspect_model(str(model)).identity != before


def test_identity_sees_all_of_large_files(model):
    """The cross-attention of a UNet lies in the middle of its file, which was not looked at."""
    seen = []
    for at in (None, 0, 3 * 2**19, -1):
        content = bytearray(3 * 2**20)
        if at is not None:
            content[at] = 1
        (model / UNET).write_bytes(content)
        seen.append(inspect_model(str(model)).identity)
    assert len(set(seen)) == 4
    assert len({each.older for each in seen}) == 3 and seen[0].older == seen[2].older


def test_weights_that_are_not_loaded_do_not_count(model):
    plain, half = (inspect_model(str(model), variant=each).identity for each in (None, "fp16"))
    assert plain == half
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.bin"):
        (model / "unet" / name).write_bytes(b"other weights")
        assert inspect_model(str(model)).identity == plain
        assert inspect_model(str(model)).identity.older != plain.older
    with_half = inspect_model(str(model), variant="fp16").identity
    assert with_half != plain
    (model / "unet/diffusion_pytorch_model.fp16-00001-of-00001.safetensors").write_bytes(b"1")
    assert inspect_model(str(model)).identity == plain
    assert inspect_model(str(model), variant="fp16").identity not in (plain, with_half)
    (model / UNET).unlink()  # then the file of the other format is loaded
    without = inspect_model(str(model)).identity
    (model / "unet/diffusion_pytorch_model.bin").write_bytes(b"still other weights")
    assert len({plain, without, inspect_model(str(model)).identity}) == 3


def test_weights_that_cannot_be_read_are_named(model):
    with pytest.raises(UserError, match=r"cannot read \S+/unet: it is a folder"):
        identity.content_of({"unet": model / "unet"})


# --- the hub's cache, offline ----------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The hub's cache, empty."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(hub: Path, name: str, commit: str, folder: str | Path | None = None) -> Path:
    """Make `main` of a hub id this commit; its files are links to blobs, as the hub has them."""
    root = hub / f"models--{name.replace('/', '--')}"
    for file in () if folder is None else Path(folder).rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            is_large = file.suffix == ".safetensors"
            digest = (hashlib.sha256 if is_large else hashlib.sha1)(content).hexdigest()
            link = root / "snapshots" / commit / file.relative_to(folder)
            for parent in (root / "blobs", link.parent):
                parent.mkdir(parents=True, exist_ok=True)
            (root / "blobs" / digest).write_bytes(content)
            link.symlink_to(root / "blobs" / digest)
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    return root / "snapshots" / commit


def test_hub_model_is_called_by_its_commit_and_loaded_from_there(hub, small_model, tmp_path):
    other = build_pipeline(seed=2)
    other.save_pretrained(tmp_path / "other")
    put(hub, "someone/model", "a" * 40, small_model)
    info = inspect_model("someone/model")
    assert (info.identity, info.identity.older) == (
        f"someone/model@{'a' * 40}",
        "someone/model@main",
    )
    assert inspect_model("someone/model", variant="fp16").identity == f"{info.identity} fp16"
    put(hub, "someone/model", "b" * 40, tmp_path / "other")
    assert inspect_model("someone/model").identity == f"someone/model@{'b' * 40}"
    assert inspect_model("someone/model", "a" * 40).identity == info.identity
    # What was inspected is loaded, also where `main` has moved on.
    weights = load_pipeline(info, CPU, torch.float32).unet.state_dict()
    original = build_pipeline().unet.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in weights.items())


def test_files_in_the_hubs_cache_carry_their_digest(hub, small_model, monkeypatch):
    expected, hashed = identity_of(small_model), []

    def digests(paths, actual=identity.file_digests):
        hashed.extend(paths := list(paths))
        return actual(paths)

    monkeypatch.setattr(identity, "file_digests", digests)
    assert identity_of(str(put(hub, "someone/model", "a" * 40, small_model))) == expected
    assert hashed and not any(len(path.name) == 64 for path in hashed)


def test_whatever_comes_from_the_hub_is_called_by_its_commit(hub, make, tmp_path):
    lora = tmp_path / "lora/pytorch_lora_weights.safetensors"
    key = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    lora.parent.mkdir()
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, 32), f"{key}.lora_B.weight": torch.ones(32, 2)}, lora
    )
    put(hub, "someone/lora", "c" * 40, lora.parent)
    put(hub, "someone/clip", "d" * 40, build_clip(tmp_path / "clip"))
    flags = ["--lora=someone/lora", "--filter=clip", "--filter_model=someone/clip"]
    status, err = make(*flags)
    assert status == 0, err
    assert settings()["lora"] == f"someone/lora@{'c' * 40}"
    scorers = {line["scorer"] for line in lines() if "score" in line}
    put(hub, "someone/lora", "e" * 40, lora.parent)
    status, err = make(*flags)
    assert status == 2 and f"--lora: there someone/lora@{'c' * 40}, now" in err
    put(hub, "someone/lora", "c" * 40)
    put(hub, "someone/clip", "f" * 40, tmp_path / "clip")
    assert make(*flags)[0] == 0
    assert {line["scorer"] for line in lines() if "score" in line} > scorers  # scored again


# --- experiments that have older names -------------------------------------------------------


@pytest.fixture
def older_code(monkeypatch):
    """A function that runs another one as code would that knows the older names alone."""

    def run(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(
                Identity, "__new__", lambda cls, name, older=None: _plain(cls, older or name)
            )
            return function(*arguments, **options)

    return run


def _plain(cls, name: str):
    made = str.__new__(cls, name)
    made.older = name
    return made


def folder_of(name="aug", seed=0) -> Path:
    return Path(f"output/e/{name}/seed={seed}_ex=1")


def settings(name="aug", seed=0) -> dict:
    return read_config(folder_of(name, seed))["settings"]


def lines(name="aug") -> list[dict]:
    """All lines in records/."""
    files = sorted((folder_of(name) / "records").iterdir())
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_images_of_older_code_stay_and_go_on(make, older_code, tmp_path, capsys):
    clip = build_clip(tmp_path / "clip")
    for seed, name in enumerate(NAMES, 10):
        build_pipeline(seed=seed).unet.save_pretrained(tmp_path / "unets" / name)
    flags = [f"--unet_path={tmp_path}/unets/{{name}}", "--filter=clip", f"--filter_model={clip}"]
    assert older_code(make, *flags)[0] == 0
    (folder_of() / "000001-001.png").unlink()
    config, before = (folder_of() / "config.json").read_bytes(), images_of()
    times = {name: (folder_of() / name).stat().st_mtime_ns for name in before}
    said = lines()

    status, err = make(*flags)
    assert status == 0, err
    assert (folder_of() / "config.json").read_bytes() == config
    assert all((folder_of() / name).stat().st_mtime_ns == times[name] for name in before)
    new = [line for line in lines() if line not in said]
    assert {line["file_name"] for line in new} == {"000001-001.png"}
    assert len(new) == 3  # its record, its score, its mark
    older, present = ({line["unet"] for line in each} for each in (said, new))
    assert len(older) == 3 and len(present) == 1 and not older & present
    assert len(read_records(folder_of())) == 6
    said = lines()
    assert make(*flags)[0] == 0 and lines() == said  # nothing is said again
    for name in ("000000-000.png", "000001-001.png"):
        capsys.readouterr()
        generate_augmentations.main([f"--reproduce={folder_of() / name}", "--device=cpu"])
        assert capsys.readouterr().out.endswith(": equal\n")

    # A further trial stands in one mean with the one that is there; another set of images does not.
    assert make(*flags, "--seed=1")[0] == 0
    assert settings(seed=1)["model"] == settings()["model"]
    assert make(*flags[:1], name="another")[0] == 0
    assert settings("another")["model"] != settings()["model"]

    # Other weights, as the older way sees them, are other weights.
    build_pipeline(seed=20).unet.save_pretrained(tmp_path / "unets" / "cat")
    status, err = make(*flags)
    assert status == 2 and "holds images made with other weights for: cat; choose" in err


def test_folder_of_older_code_notices_another_model(make, older_code, tmp_path, small_model):
    assert older_code(make)[0] == 0
    other = shutil.copytree(small_model, tmp_path / "other")
    build_pipeline(seed=5).unet.save_pretrained(other / "unet")
    status, err = make(f"--model_path={other}")
    assert status == 2 and f"--model_path: there {settings()['model']}, now sha256:" in err
    # Images that are made again get the name that sees everything.
    assert make("--strength=0.9", "--overwrite")[0] == 0
    assert settings()["model"] == identity_of(small_model)


def test_words_of_older_code_stay_and_go_on(older_code, workdir, photos, small_model):
    def tune(*flags):
        fine_tune.main(
            ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e",
             f"--model_path={small_model}", "--device=cpu", "--max_train_steps=2",
             "--num_vectors=1", "--examples_per_class=1", "--report_to=none", *flags]
        )  # fmt: skip

    def word(name, seed=0):
        return folder_of("fine-tuned", seed) / name / "learned_embeds.safetensors"

    older_code(tune, "--classes", "cat", "stop sign")
    identity = read_config(folder_of("fine-tuned"))["id"]
    finished = word("cat").read_bytes()
    tune()
    assert word("cat").read_bytes() == finished
    assert read_config(folder_of("fine-tuned"))["id"] == identity
    names = {read_header(word(name.replace(" ", "_")))["config_id"] for name in NAMES}
    assert names == {identity}
    assert settings("fine-tuned")["model"] == identity_of(small_model).older
    tune("--seed=1", "--classes", "cat")
    assert settings("fine-tuned", 1)["model"] == settings("fine-tuned")["model"]


def test_checkpoints_of_older_code_are_gone_on_from():
    keys = ("class", "seed", "examples_per_class", "token", "initializer", "steps", "photos")
    header = dict.fromkeys(keys, "same")
    now = {"model": Identity("sha256:now", older="sha256:older"), "resolution": 32}
    for name, differs in (("older", False), ("now", False), ("other", True)):
        there = {"header": header, "settings": {"model": f"sha256:{name}", "resolution": 32}}
        assert bool(differences(there, header, now)) == differs
