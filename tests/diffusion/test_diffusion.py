"""Loading a pipeline: what is read of a model, and what can be wrong with it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import build_pipeline
from diffusers import StableDiffusionPipeline

from semantic_aug import UserError
from semantic_aug.diffusion import loading
from semantic_aug.diffusion.inspecting import check_resolution, inspect_model
from semantic_aug.diffusion.loading import (
    check_steps,
    cpu_has_bf16,
    load_pipeline,
    load_tokenizer,
    make_scheduler,
    pick_device,
    pick_dtype,
    tune_for_speed,
    warn_if_slow,
)

CPU = torch.device("cpu")
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def load(folder, dtype=torch.float32, **options):
    info = inspect_model(str(folder), **options)
    load_tokenizer(info)
    return load_pipeline(info, CPU, dtype)


def modules_of(pipeline) -> dict[str, torch.nn.Module]:
    return {k: v for k, v in pipeline.components.items() if isinstance(v, torch.nn.Module)}


def notices(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("semantic_aug")]


@pytest.fixture
def model(small_model, tmp_path) -> Path:
    """A copy of the small model, to be changed."""
    return Path(shutil.copytree(small_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def half_model(small_model, tmp_path_factory) -> Path:
    """The small model with half-precision weights alone, in files of that variant."""
    folder = tmp_path_factory.mktemp("half") / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(small_model, dtype=torch.float16)
    pipeline.save_pretrained(folder, variant="fp16")
    return folder


# --- what a model's configuration says -------------------------------------------------------


def test_model_is_described_without_its_weights(model):
    for path in model.rglob("*.safetensors"):
        path.unlink()
    info = inspect_model(str(model))
    assert (info.name, info.revision, info.variant) == (str(model), None, None)
    assert info.resolution == 32  # 16 latents of 2 pixels
    assert info.multiple == 4  # 2 of the VAE, 2 of the UNet
    assert info.embedding_dims == (32,)
    assert not info.is_xl


def test_revision_fp16_means_half_precision_files(small_model):
    info = inspect_model(small_model, revision="fp16")
    assert (info.revision, info.variant) == (None, "fp16")
    info = inspect_model(small_model, revision="fp16", variant="bf16")
    assert (info.revision, info.variant) == (None, "bf16")
    info = inspect_model(small_model, revision="v1.4")
    assert (info.revision, info.variant) == ("v1.4", None)


def test_second_text_encoder_is_an_xl(model):
    edit_json(model / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    shutil.copytree(model / "text_encoder", model / "text_encoder_2")
    edit_json(model / "text_encoder_2" / "config.json", hidden_size=48)
    info = inspect_model(str(model))
    assert info.is_xl and info.embedding_dims == (32, 48)


def test_sample_size_of_height_and_width(model):
    edit_json(model / "unet" / "config.json", sample_size=[24, 24])
    assert inspect_model(str(model)).resolution == 48


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_resolution_is_the_model_s_own_or_a_multiple(small_model):
    info = inspect_model(small_model)
    assert check_resolution(info, None) == 32
    assert check_resolution(info, 48) == 48
    for wrong, near in ((30, "32"), (33, "32"), (1, "4")):
        message = f"--resolution: got {wrong}, .* multiple of 4, such as {near}$"
        with pytest.raises(UserError, match=message):
            check_resolution(info, wrong)


# --- devices ---------------------------------------------------------------------------------


def test_devices_and_precisions(caplog):
    assert pick_device("cpu") == CPU
    assert pick_device() in (torch.device("cuda"), torch.device("mps"), CPU)
    assert pick_dtype(CPU, "no") == torch.float32
    assert notices(caplog) == []
    assert pick_dtype(CPU, "fp16") == torch.float32
    assert notices(caplog) == ["no GPU: float32 is used in place of --mixed_precision=fp16"]
    assert pick_dtype(CPU, "bf16") == torch.bfloat16
    assert pick_dtype(torch.device("cuda"), "fp16") == torch.float16
    assert pick_dtype(torch.device("cuda", 1), "bf16") == torch.bfloat16


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bfloat16_is_a_warning(has, monkeypatch, caplog):
    monkeypatch.setattr(loading, "cpu_has_bf16", lambda: has)
    for device, precision in ((CPU, "no"), (CPU, "fp16"), (torch.device("cuda"), "bf16")):
        warn_if_slow(device, precision)
    assert notices(caplog) == []
    warn_if_slow(CPU, "bf16")
    assert [text.partition(": ")[0] for text in notices(caplog)] == [
        "this CPU has no instructions for bfloat16"
    ] * (not has)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="no Linux")
def test_what_the_cpu_has_is_what_linux_says():
    says = Path("/proc/cpuinfo").read_text().split()
    assert cpu_has_bf16() == any(flag in says for flag in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_of_the_cpu_have_channels_last_in_bfloat16_alone(small_model, dtype):
    pipeline = load(small_model, dtype)
    tune_for_speed(pipeline, False)
    for part in (pipeline.unet, pipeline.vae):
        weights = [m.weight for m in part.modules() if isinstance(m, torch.nn.Conv2d)]
        last = [
            w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.shape[2] > 1
        ]
        assert last and all(each is (dtype == torch.bfloat16) for each in last)


def test_processes_of_one_launch_take_one_gpu_each(workdir, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda", 0)
    found = []
    for rank in "0123":
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(pick_device().index)
    assert found == [0, 1, 0, 1]
    assert pick_device("cpu") == CPU
    monkeypatch.delenv("LOCAL_RANK")
    for name, value in {"STEP_NUM_TASKS": "4", "PROCID": "2", "LOCALID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert pick_device() == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", "cpu:x"])
def test_absent_device_is_named(name):
    with pytest.raises(UserError, match=f"--device: '{name}' is not there: ") as refused:
        pick_device(name)
    assert "\n" not in str(refused.value)


# --- loading ---------------------------------------------------------------------------------


def test_pipeline_is_frozen_and_whole(small_model):
    pipeline = load(small_model)
    modules = modules_of(pipeline)
    assert modules.keys() == {"unet", "vae", "text_encoder"}
    for module in modules.values():
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert pipeline.safety_checker is None
    original = build_pipeline().unet.state_dict()
    assert all(torch.equal(v, original[k]) for k, v in pipeline.unet.state_dict().items())


def test_half_precision_text_encoder_beside_float32(model):
    pipeline = build_pipeline()
    shutil.rmtree(model / "text_encoder")
    pipeline.text_encoder.half().save_pretrained(model / "text_encoder")
    for dtype in (torch.float32, torch.bfloat16):
        loaded = load(model, dtype)
        assert {module.dtype for module in modules_of(loaded).values()} == {dtype}
    image = load(model)("a cat", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (32, 32, 3)
    assert image.std() > 0


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"revision": "fp16"}])
def test_variant_is_used_where_it_is(half_model, caplog, options):
    rounded = {k: v.half().float() for k, v in build_pipeline().unet.state_dict().items()}
    pipeline = load(half_model, **options)
    assert all(torch.equal(v, rounded[k]) for k, v in pipeline.unet.state_dict().items())
    assert {module.dtype for module in modules_of(pipeline).values()} == {torch.float32}
    assert notices(caplog) == []


@pytest.mark.parametrize("variant", ["fp16", "bf16", "[", "*"])
def test_variant_that_is_not_there_is_a_notice(small_model, caplog, variant):
    pipeline = load(small_model, variant=variant)
    assert notices(caplog) == [
        f"{small_model} has no {variant} weights: its ordinary weights are used"
    ]
    original = build_pipeline().unet.state_dict()
    assert all(torch.equal(v, original[k]) for k, v in pipeline.unet.state_dict().items())


def test_variant_alone_is_not_loaded_unasked(half_model):
    with pytest.raises(UserError, match=r"cannot load .*model: Error no file named"):
        load(half_model)


def test_safety_checker_is_left_out(model):
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(model / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    assert load(model).safety_checker is None  # and its weights, which are absent, are not missed


# --- what can be wrong -----------------------------------------------------------------------


def test_folder_that_is_no_pipeline(tmp_path, model):
    assert_refused(tmp_path, "is no diffusers pipeline: it has no model_index.json")
    assert_refused(tmp_path / "absent", "model folder .*absent does not exist")
    assert_refused(model / UNET, "is no diffusers pipeline")  # a file
    (model / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert_refused(model, "is no Stable Diffusion pipeline: it has no unet, vae, text_encoder")


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"],
)
def test_broken_configuration_is_found_before_weights_are_read(model, file):
    for path in model.rglob("*.safetensors"):
        path.unlink()
    content = (model / file).read_bytes()
    for broken in (b"", content[: len(content) // 2], b"[]", b"\xff\xfe{}"):
        (model / file).write_bytes(broken)
        with pytest.raises(UserError, match=f"{file}") as refused:
            inspect_model(str(model))
        assert "\n" not in str(refused.value)
    (model / file).unlink()
    with pytest.raises(UserError, match=f"it has no {file}"):
        inspect_model(str(model))


@pytest.mark.parametrize(
    "file, key",
    [
        ("unet/config.json", "sample_size"),
        ("unet/config.json", "block_out_channels"),
        ("vae/config.json", "block_out_channels"),
        ("text_encoder/config.json", "hidden_size"),
    ],
)
def test_incomplete_configuration_names_the_key(model, file, key):
    content = json.loads((model / file).read_text())
    del content[key]
    (model / file).write_text(json.dumps(content))
    assert_refused(model, f"damaged: '{key}' is missing")


DAMAGED = [
    (file, key, value)
    for file, key in (
        ("unet", "sample_size"), ("unet", "in_channels"), ("unet", "block_out_channels"),
        ("vae", "latent_channels"), ("vae", "block_out_channels"), ("text_encoder", "hidden_size"),
    )
    for value in (None, "big", ["x"], {}, 0, -1, 3.5, 10**12)
]  # fmt: skip


def test_numbers_of_another_type_are_named(small_model, tmp_path):
    configurations = ["model_index.json", "scheduler/scheduler_config.json"]
    configurations += [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
    for file in configurations:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(Path(small_model) / file, tmp_path / file)
    for part, key, value in DAMAGED:
        path = tmp_path / part / "config.json"
        before = path.read_text()
        edit_json(path, **{key: value})
        with pytest.raises(UserError, match="its configuration files are damaged: "):
            inspect_model(str(tmp_path))
        path.write_text(before)
    path = tmp_path / "scheduler/scheduler_config.json"
    before = path.read_text()
    edit_json(path, prediction_type="foo")
    with pytest.raises(UserError, match="predicts 'foo'; known: epsilon, v_prediction, sample"):
        inspect_model(str(tmp_path))
    path.write_text(before)
    info = inspect_model(str(tmp_path))
    for key, value in {
        "beta_schedule": "foo", "beta_start": "low", "num_train_timesteps": 10**12,
        "trained_betas": 1, "_class_name": "Foo",
    }.items():  # fmt: skip
        edit_json(path, **{key: value})
        with pytest.raises(UserError, match=r"scheduler/scheduler_config\.json makes no "):
            check_steps(info, None, 20)
        if key not in ("_class_name", "trained_betas"):  # words are trained with another class
            with pytest.raises(UserError, match="makes no DDPMScheduler: "):
                make_scheduler(info, "DDPMScheduler")
        path.write_text(before)
    with pytest.raises(UserError, match="--num_inference_steps: LCMScheduler cannot do 60: "):
        check_steps(info, "lcm", 60)


def test_model_for_instructions_is_refused(model):
    edit_json(model / "unet" / "config.json", in_channels=8)
    assert_refused(model, "its UNet needs more than an image")


def test_model_for_inpainting_is_known(model):
    assert not inspect_model(str(model)).for_inpainting
    edit_json(model / "unet" / "config.json", in_channels=9)
    assert inspect_model(str(model)).for_inpainting


@pytest.mark.parametrize("file", [UNET, TEXT_ENCODER, "vae/diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 100, 9000])
def test_missing_or_truncated_weights_are_one_line(model, file, size, capsys):
    content = (model / file).read_bytes()
    (model / file).unlink()
    if size is not None:
        (model / file).write_bytes(content[:size])
    assert_refused(model, "^cannot load .*model: ")
    assert capsys.readouterr().err == ""  # what libraries log beside the error they raise


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", '{"a', "[]"])
def test_broken_tokenizer_is_one_line(model, file, content):
    (model / "tokenizer" / file).write_text(content)
    assert_refused(model, "^cannot load .*model: ")


def test_missing_parts_are_one_line(model):
    shutil.rmtree(model / "scheduler")
    assert_refused(
        model, "model is no diffusers pipeline: it has no scheduler/scheduler_config.json"
    )


def test_tokenizer_without_words_is_refused(model):
    """The library loads one of two tokens, and every prompt would mean the same."""
    info = inspect_model(str(model))
    (model / "tokenizer" / "tokenizer.json").unlink()
    for _ in range(2):
        for read in (load_tokenizer, lambda each: load_pipeline(each, CPU, torch.float32)):
            with pytest.raises(UserError, match=r"cannot load .*model: .*tokenizer"):
                read(info)
        shutil.rmtree(model / "tokenizer", ignore_errors=True)


def test_unknown_classes_are_one_line(model):
    edit_json(model / "model_index.json", _class_name="NoSuchPipeline")
    assert_refused(model, "^cannot load .*NoSuchPipeline")
    edit_json(
        model / "model_index.json",
        _class_name="StableDiffusionPipeline",
        unet=["diffusers", "NoSuchUNet"],
    )
    assert_refused(model, "^cannot load .*NoSuchUNet")


def assert_refused(model: Path, message: str):
    with pytest.raises(UserError, match=message) as refused:
        load(model)
    text = str(refused.value)
    assert "\n" not in text
    assert text.count(str(model)) >= 1 and text.count("cannot load") <= 1


# --- the hub, offline ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["someone/some-model", "some-model"])
def test_hub_model_without_network_or_copy(name):
    with pytest.raises(UserError, match=f"cannot get {name}: .*local cache") as refused:
        inspect_model(name)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match=f"cannot get {name} at revision v2: "):
        inspect_model(name, revision="v2")


@pytest.mark.parametrize("name", ["./model", "a/b/c", "/a/b", "../model", "a b/c", "-x/y"])
def test_name_that_cannot_be_a_hub_model(name):
    with pytest.raises(UserError, match=r"does not exist|cannot get") as refused:
        inspect_model(name)
    assert name in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def cached(small_model, tmp_path, monkeypatch) -> str:
    """A hub id whose files lie in the local cache, and its own revision `v2` with another UNet."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--someone--some-model"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(small_model, root / "snapshots" / commit)
    build_pipeline(seed=2).unet.save_pretrained(root / "snapshots" / ("b" * 40) / "unet")
    return "someone/some-model"


def test_hub_model_from_the_local_cache(cached):
    info = inspect_model(cached)
    assert info.resolution == 32
    weights = load(cached).unet.state_dict()
    original = build_pipeline().unet.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in weights.items())


def test_revision_is_one_of_the_hub_s(cached):
    info = inspect_model(cached, revision="v2")
    assert info.identity == f"{cached}@{'b' * 40}" and info.identity.older == f"{cached}@v2"
    weights = load(cached, revision="v2").unet.state_dict()
    original = build_pipeline(seed=2).unet.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in weights.items())


def test_hub_model_without_the_variant(cached, caplog):
    original = build_pipeline().unet.state_dict()
    weights = load(cached, revision="fp16").unet.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in weights.items())
    assert notices(caplog) == [
        "someone/some-model has no fp16 weights: its ordinary weights are used"
    ]
