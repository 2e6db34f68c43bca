"""Shared by the tests: a small Stable Diffusion per run, small photo folders, real photos."""

import copy
import functools
import io
import json
import multiprocessing
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings, strategies
from PIL import Image, ImageDraw

from semantic_aug.diffusion import loading

settings.register_profile("patient", deadline=None)  # a slow machine must not fail
settings.load_profile("patient")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1)  # several threads would slow such small models
# A script's background job and its children ignore Ctrl-C; tests send Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
# Prefixes of variables that make commands share their work, or change what scripts do.
OF_CLUSTERS = (
    "SLURM_", "PMI_", "MPI_", "OMPI_", "WORLD_SIZE", "RANK", "LOCAL_RANK", "ACCELERATE_", "LAUNCH",
    "ACTIVATE", "EXTRA_SBATCH", "DA_FUSION_ROOT", "MAX_REQUEUES",
)  # fmt: skip
CAPTIONS = [
    "a photo of a motor", "a photo of the small motor on a table", "a photo of a cat and a dog",
    "a rendering of a red car", "a toy train", "the big blue bird", "an object in a photo",
    "a photo of a stop sign", "a close-up photo of the nice gear", "one person and a horse",
]  # fmt: skip


def loaded_once(load):
    """`load_pipeline` that reads a folder once per run: reading takes most of a small command.

    Callers get their own copies. A folder whose files have changed is read again.
    """

    @functools.lru_cache(maxsize=8)
    def read(info, device, dtype, _) -> tuple[bytes, list[torch.Tensor]]:
        tensors, written = [], io.BytesIO()
        pickler = pickle.Pickler(written)  # a tenth of the time of copy.deepcopy
        pickler.persistent_id = functools.partial(number_of, tensors)
        pickler.dump(load(info, device, dtype))
        return written.getvalue(), tensors

    def number_of(tensors, part):
        if not isinstance(part, torch.Tensor):
            return None
        tensors.append(part)
        return len(tensors) - 1

    @functools.wraps(load)
    def copied(info, device, dtype):
        if info.variant or device.type != "cpu":
            return load(info, device, dtype)
        files = [(path, path.stat()) for path in sorted(Path(info.name).rglob("*"))]
        state = tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in files)
        pickled, tensors = read(info, device, dtype, state)
        unpickler, memo = pickle.Unpickler(io.BytesIO(pickled)), {}
        unpickler.persistent_load = lambda number: copy.deepcopy(tensors[number], memo)
        return unpickler.load()

    return copied


loading.load_pipeline = loaded_once(loading.load_pipeline)  # before other modules import it


def build_tokenizer():
    """A CLIP tokenizer with its own small byte-pair vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    trainer = trainers.BpeTrainer(
        vocab_size=900,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trained.train_from_iterator(CAPTIONS, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters] + ["".join(m) for m in merges]
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def build_pipeline(seed: int = 0, hidden_size: int = 32, prediction_type: str = "epsilon"):
    """A complete Stable Diffusion with random weights, 32 px, a few hundred thousand parameters."""
    from diffusers import (
        AutoencoderKL,
        PNDMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=hidden_size,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=32,
        )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_xl_pipeline(seed: int = 0):
    """A complete SDXL with random weights, 32 px: two text encoders of different widths."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    parts = build_pipeline(seed).components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        tokenizer = build_tokenizer()
        encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=48,
                intermediate_size=96,
                projection_dim=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32 + 48,
            attention_head_dim=8,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        )
    return StableDiffusionXLPipeline(
        vae=parts["vae"],
        text_encoder=parts["text_encoder"],
        text_encoder_2=encoder,
        tokenizer=parts["tokenizer"],
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=parts["scheduler"],
        add_watermarker=False,
    )


@pytest.fixture(scope="session")
def xl_model(tmp_path_factory) -> str:
    """Folder of a small SDXL."""
    folder = tmp_path_factory.mktemp("model") / "small-sdxl"
    build_xl_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def inpainting_model(tmp_path_factory) -> str:
    """Folder of a small Stable Diffusion whose UNet sees a mask and the masked photo."""
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    parts = build_pipeline().components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")}
        parts["unet"] = UNet2DConditionModel(**{**config, "in_channels": 9})
    folder = tmp_path_factory.mktemp("model") / "small-inpainting"
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def velocity_model(tmp_path_factory) -> str:
    """Folder of a small Stable Diffusion that predicts the velocity, as 2.x does."""
    folder = tmp_path_factory.mktemp("model") / "small-sd-2"
    build_pipeline(seed=3, hidden_size=48, prediction_type="v_prediction").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> str:
    """Folder of a small Stable Diffusion, for `from_pretrained`."""
    folder = tmp_path_factory.mktemp("model") / "small-sd"
    build_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real photos; without it, the test is skipped."""
    folder = Path(os.environ.get("FEW_SHOT_REAL_DATA", ROOT / ".." / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real photos: {folder} is absent (set FEW_SHOT_REAL_DATA)")
    return folder


@pytest.fixture(autouse=True)
def own_argv(monkeypatch) -> None:
    """`semantic-aug COMMAND` changes sys.argv; the next test gets the old one."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """An empty working directory, without data roots, SLURM and launchers in the environment."""
    monkeypatch.chdir(tmp_path)
    for variable in list(os.environ):
        if variable.endswith("_DIR") or variable.startswith(OF_CLUSTERS):
            monkeypatch.delenv(variable)
    return tmp_path


def forked(main, *argv) -> multiprocessing.Process:
    """A command in its own process, to be killed; forked, because importing takes ten seconds."""
    process = multiprocessing.get_context("fork").Process(target=main, args=(list(argv),))
    process.start()
    return process


@pytest.fixture
def short_validation(monkeypatch) -> None:
    """Make validation during fine-tuning short: a few noises and denoising steps."""
    from semantic_aug.words import session, training

    monkeypatch.setattr(session, "VALIDATION_IMAGE_STEPS", 3)
    monkeypatch.setattr(training, "VALIDATION_BATCHES", 2)


@pytest.fixture
def sketched(monkeypatch) -> None:
    """Save figures as an empty pixel: they take most of a small train_classifier.py."""
    from matplotlib.figure import Figure

    from semantic_aug.evaluation import plots

    def save(self, path, **_):
        Image.new("L", (1, 1)).save(path, "png")

    monkeypatch.setattr(Figure, "savefig", save)
    for name in ("accuracy_figure", "per_class_figure", "confusion_figure"):
        monkeypatch.setattr(plots, name, lambda *_: Figure())


@strategies.composite
def rectangles(draw, least: int = 1, most: int = 60):
    """A mask of up to three rectangles: one pixel, all of it, at its edges, in parts, or none."""
    sides = strategies.integers(least, most)
    width, height = draw(sides), draw(sides)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(draw(strategies.integers(0, 3))):
        x = draw(strategies.integers(0, width - 1))
        y = draw(strategies.integers(0, height - 1))
        across = draw(strategies.integers(1, width))
        down = draw(strategies.integers(1, height))
        mask[y : y + down, x : x + across] = 255
    return mask


def draw_photo(path: Path, colour, seed: int, size=(48, 40)) -> None:
    """A photo of a coloured disc on noise, and its mask in the parallel tree `masks`."""
    random = np.random.default_rng(seed)
    ground = random.integers(60, 120, (size[1], size[0], 3), dtype=np.uint8)
    image, mask = Image.fromarray(ground), Image.new("L", size, 0)
    x, y = random.integers(4, 14, 2)
    box = (int(x), int(y), int(x) + 20, int(y) + 20)
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    root = next(p for p in path.parents if p.name == "photos")
    mask_path = root.parent / "masks" / path.relative_to(root)
    mask_path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(mask_path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """`photos/{train,val,test}/CLASS/*.png` of three classes, masks beside it in `masks`."""
    colours = {"cat": (220, 40, 40), "stop sign": (40, 200, 40), "toy train": (50, 60, 230)}
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for label, (name, colour) in enumerate(colours.items()):
            for number in range(count):
                seed = 100 * label + 10 * number + len(split)
                draw_photo(tmp_path / "photos" / split / name / f"{number}.png", colour, seed)
    return tmp_path / "photos"


@pytest.fixture
def called(capsys):
    """Call a command's main: exit status, stdout and stderr."""

    def called(main, *argv):
        capsys.readouterr()
        try:
            main([*map(str, argv)])
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    return called


@pytest.fixture
def make(photos, small_model, workdir, called):
    """Run generate_augmentations.py on the small photos; returns exit status and stderr."""

    import generate_augmentations

    def make(*flags, name="aug"):
        argv = ["--dataset=folder", f"--data_dir={photos}", "--experiment_name=e",
                f"--model_path={small_model}", "--num_synthetic=2", "--num_inference_steps=4",
                "--device=cpu", f"--aug_name={name}", *flags]  # fmt: skip
        status, _, said = called(generate_augmentations.main, *argv)
        return status, said

    return make


def images_of(name="aug") -> dict[str, np.ndarray]:
    """Pixels of the images of `make`, by file name."""
    folder = Path(f"output/e/{name}/seed=0_ex=1")
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("*.png"))}


def write_trial(folder, seed, k, accuracy, selected=1) -> None:
    """Results of three epochs in classes 007 and NA; the selected epoch has this accuracy.

    The validation split has 0.1 less.
    """
    from semantic_aug.evaluation import results
    from semantic_aug.evaluation.metrics import evaluation
    from semantic_aug.experiment.names import Trial

    def scores(share):
        right = round(share * 1000)
        predicted = torch.tensor(2 * (right * [0] + (1000 - right) * [1]))
        labels = torch.tensor(1000 * [0] + 1000 * [1])
        logits = torch.nn.functional.one_hot((predicted + labels) % 2, 2).double()
        return evaluation(logits, labels)

    trial, names, rows = Trial(seed, k), ["007", "NA"], []
    titles = results.metric_names(names)
    at_selected, others, test = scores(accuracy - 0.1), scores(0.123), scores(accuracy)
    for epoch in range(3):
        validated = at_selected if epoch == selected else others
        rows += results.score_rows(trial, epoch, results.TRAINING, others, titles, [0, 1])
        rows += results.score_rows(trial, epoch, results.VALIDATION, validated, titles, [0, 1])
    rows.append(results.selected_row(trial, selected))
    rows += results.score_rows(trial, selected, results.TEST, test, titles, [0, 1])
    whole = {results.VALIDATION: at_selected, results.TEST: test}
    results.write_confusions(results.confusion_file(folder, trial), whole, names)
    results.write_results(results.results_file(folder, trial), rows)


def build_clip(folder: Path) -> Path:
    """A small CLIP with random weights, for 16 px, in `folder`."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = build_tokenizer()
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer)}
    text |= {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    vision = {"image_size": 16, "patch_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPConfig(
            text_config=common | text, vision_config=common | vision, projection_dim=24
        )
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.3]}
    processor |= {"size": {"shortest_edge": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def build_backbone(folder: Path) -> Path:
    """A small image classifier of transformers with random weights, for 32 px, in `folder`."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_channels=3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ResNetModel(config).save_pretrained(folder)
    processor = {
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "size": {"shortest_edge": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_resnet(folder: Path, preprocessor: dict | None = None, half: bool = False) -> str:
    from transformers import ResNetConfig, ResNetForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetForImageClassification(
            ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic")
        )
    (model.half() if half else model).save_pretrained(folder)
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return str(folder)


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> str:
    config = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], "size": 16}
    return save_resnet(tmp_path_factory.mktemp("backbone"), config)
