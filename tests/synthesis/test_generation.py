"""Jobs, blocks, shards, records and resumption of the generation stage."""

import errno
import hashlib
import json
import os
import re
import signal
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw_photo, forked, images_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

import generate_augmentations
from semantic_aug import UserError
from semantic_aug.datasets import build_dataset
from semantic_aug.experiment.config import config_id, read_config, write_config
from semantic_aug.experiment.names import Trial, merged_file
from semantic_aug.experiment.sharding import shard_blocks
from semantic_aug.generative_augmentation import Edit, GenerativeAugmentation
from semantic_aug.stages import editing, planning
from semantic_aug.stages.made_alike import differing_settings
from semantic_aug.synthesis import making
from semantic_aug.synthesis import records as synthesis_records
from semantic_aug.synthesis.jobs import job_generator, make_jobs
from semantic_aug.synthesis.making import generate
from semantic_aug.synthesis.records import (
    RecordWriter,
    _lines,
    older_precision,
    read_records,
    read_scores,
    whole_images,
    write_metadata,
)
from semantic_aug.synthesis.variants import read_variants
from semantic_aug.words.embeddings import rows_digest, write_embeddings

RECORD_KEYS = {
    "file_name", "label", "class_name", "source", "index", "repeat", "seed", "examples_per_class",
    "prompt", "aug", "strength", "guidance_scale", "mask", "inverted", "num_inference_steps",
    "resolution", "model", "embeddings", "precision",
}  # fmt: skip


class Stub(GenerativeAugmentation):
    """Adds to each photo noise from its own generator; counts batches."""

    def __init__(self):
        self.batches = []

    def augment(self, images, labels, metadata, generators):
        self.batches.append([meta["source"] for meta in metadata])
        results = []
        for image, generator in zip(images, generators):
            noise = torch.randint(256, (*image.size[::-1], 3), generator=generator)
            results.append(Image.fromarray(noise.numpy().astype(np.uint8)))
        edits = [[Edit("stub", "a photo", 0.5, 7.5, False, False)] for _ in images]
        return results, edits


def trial(photos, examples_per_class=2, **options):
    return build_dataset(
        "folder", "train", data_dir=photos, examples_per_class=examples_per_class, **options
    )


def run(dataset, folder, **options):
    options = {"num_synthetic": 3, "batch_size": 4} | options
    constants = {"seed": 0, "examples_per_class": 2}
    stub = options.pop("aug", Stub())
    return generate(dataset, lambda: stub, folder, {"a": 1},
                    constants=constants, **options)  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """Digest of every image and of metadata.jsonl."""
    names = [p for p in folder.iterdir() if p.suffix == ".png" or p.name == "metadata.jsonl"]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


def metadata(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


@given(st.integers(0, 200), st.integers(1, 12))
def test_shards_divide_the_blocks(blocks, shards):
    shares = [shard_blocks(blocks, index, shards) for index in range(shards)]
    assert sorted(chain.from_iterable(shares)) == list(range(blocks))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_blocks_lie_in_a_fixed_shuffled_order():
    assert shard_blocks(8, 0, 1) == shard_blocks(8, 0, 1) != list(range(8))


def test_random_stream_depends_on_seed_source_and_repeat_alone():
    def draw(*job):
        return torch.randn(4, generator=job_generator(*job)).tolist()

    assert draw(0, "a.jpg", 1) == draw(0, "a.jpg", 1)
    others = [draw(1, "a.jpg", 1), draw(0, "b.jpg", 1), draw(0, "a.jpg", 2)]
    assert all(other != draw(0, "a.jpg", 1) for other in others)


def test_every_photo_gets_its_variants_with_true_records(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    assert run(dataset, folder) == 18
    records = metadata(folder)
    assert [r["file_name"] for r in records] == [j.file_name for j in make_jobs(range(6), 3)]
    for record in records:
        idx = record["index"]
        assert record["label"] == dataset.get_label_by_idx(idx)
        assert record["class_name"] == dataset.class_names[record["label"]]
        assert record["source"] == dataset.sources()[idx]
        assert record["class_name"] in record["source"]
        with Image.open(folder / record["file_name"]) as image:
            assert image.size == dataset.get_image_by_idx(idx).size
            assert image.mode == "RGB"


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_shards_and_batch_sizes_give_the_same_images(photos, tmp_path, shards, batch_size):
    dataset = trial(photos)
    run(dataset, tmp_path / "whole")
    for index in reversed(range(shards)):
        run(dataset, tmp_path / "shared", shard=(index, shards), batch_size=batch_size)
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "shared" / "records").iterdir())) <= shards


def test_classes_made_separately_are_those_made_together(photos, tmp_path):
    dataset = trial(photos)
    run(dataset, tmp_path / "together")
    for name in reversed(dataset.class_names):
        run(dataset, tmp_path / "apart", indices=dataset.indices([name]))
    assert contents(tmp_path / "apart") == contents(tmp_path / "together")


def test_a_block_with_a_gap_is_computed_whole_and_the_gap_alone_written(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    before, kept = contents(folder), folder / "000000-000.png"
    stamp = kept.stat().st_mtime_ns
    (folder / "000000-001.png").unlink()
    stub = Stub()
    assert run(dataset, folder, aug=stub) == 1
    assert [len(batch) for batch in stub.batches] == [4]
    assert contents(folder) == before
    assert kept.stat().st_mtime_ns == stamp
    assert run(dataset, folder, aug=(idle := Stub())) == 0
    assert idle.batches == []


def test_an_image_without_its_record_does_not_count(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    before = contents(folder)
    (path,) = (folder / "records").iterdir()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:25])  # the process died within a line
    assert len(read_records(folder)) == 16
    assert run(dataset, folder) == 2
    assert contents(folder) == before
    assert len(read_records(folder)) == 18


def test_augmentation_that_loses_an_image_is_named_and_nothing_is_shifted(photos, tmp_path):
    class Short(Stub):
        def augment(self, *batch):
            images, edits = super().augment(*batch)
            return (images, edits) if len(self.batches) == 1 else (images[1:], edits[1:])

    dataset, folder = trial(photos), tmp_path / "out"
    with pytest.raises(UserError, match=r"Short returned 3 images and 3 .* for 4 photos"):
        run(dataset, folder, aug=Short())
    assert len(metadata(folder)) == len(list(folder.glob("*.png"))) == 4  # of the block before
    run(dataset, folder)
    run(dataset, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


def test_more_variants_are_added_to_those_there(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder, num_synthetic=1)
    first = contents(folder)
    assert run(dataset, folder, num_synthetic=3) == 12
    run(dataset, tmp_path / "fresh", num_synthetic=3)
    assert contents(folder) == contents(tmp_path / "fresh")
    assert {k: v for k, v in contents(folder).items() if k in first and k[0] == "0"} == {
        k: v for k, v in first.items() if k[0] == "0"
    }


def test_metadata_is_derived_again_from_all_records(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    before = contents(folder)
    (folder / "metadata.jsonl").unlink()
    write_metadata(folder, config_id({"a": 1}))
    assert contents(folder) == before


def test_records_are_read_not_file_names(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    variants = read_variants(folder, dataset)
    assert sorted(variants) == list(range(6))
    assert all(label == dataset.get_label_by_idx(i) for i in variants for _, label in variants[i])
    (path,) = (folder / "records").iterdir()
    text = path.read_text()
    path.write_text(text.replace('"label": 0', '"label": 1'))
    with pytest.raises(UserError, match="other classes"):
        read_variants(folder, dataset)
    path.write_text(text.replace("train/cat/", "val/cat/"))
    with pytest.raises(UserError, match="not among the training photos"):
        read_variants(folder, dataset)
    path.write_text(text)
    (folder / "000003-002.png").unlink()
    with pytest.raises(UserError, match="1 of 18 synthetic images are missing"):
        read_variants(folder, dataset)
    assert len(read_variants(folder, dataset, num_synthetic=2)[3]) == 2
    with pytest.raises(UserError, match="no synthetic images"):
        read_variants(tmp_path / "nowhere", dataset)


def test_variants_of_photos_that_have_changed_are_refused(photos, tmp_path):
    dataset, folder = trial(photos), tmp_path / "out"
    generate(dataset, Stub, folder, {"photos": dataset.photo_digest()}, num_synthetic=1,
             batch_size=4)  # fmt: skip
    assert len(read_variants(folder, dataset)) == 6
    draw_photo(photos / dataset.sources()[-1], (1, 2, 3), seed=77)
    with pytest.raises(UserError, match="was made from other photos: the training photos of this"):
        read_variants(folder, dataset)


def test_damaged_records_do_not_count(photos, tmp_path, caplog):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    before = contents(folder)
    (path,) = (folder / "records").iterdir()
    lines = path.read_text().splitlines()
    lines[0], lines[1], lines[2] = "[1, 2]", '{"file_name": "000000-001.png"}', "no json"
    path.write_text("\n".join(lines) + "\n")
    (folder / "000001-000.png").write_bytes(b"")
    assert len(read_records(folder)) == 14
    assert "no record" in caplog.text
    assert run(dataset, folder) == 4
    assert contents(folder) == before


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("label", "0", "its label is '0'"), ("label", None, "its label is None"),
        ("label", True, "its label is True"), ("label", [0], r"its label is [0]"),
        ("repeat", "1", "its repeat is '1'"), ("repeat", 1.0, "its repeat is 1.0"),
        ("repeat", 10**9, "000000-001.png does not fit its index and repeat"),
        ("index", {}, "its index is {}"), ("index", 10**9, "does not fit its index and repeat"),
        ("file_name", 3, "its file_name is 3"), ("file_name", ["a"], "its file_name is ['a']"),
        ("file_name", "../../x.png", "../../x.png does not fit its index and repeat"),
        ("class_name", 7, "its class_name is 7"), ("source", ["s"], "its source is ['s']"),
        ("seed", "0", "its seed is '0'"), ("source", ..., "it has no source"),
    ],
)  # fmt: skip
def test_record_with_another_type_is_named_and_its_image_made_again(
    photos, tmp_path, caplog, key, value, said
):
    dataset, folder = trial(photos, 1), tmp_path / "out"
    run(dataset, folder, num_synthetic=2)
    before = contents(folder)
    (path,) = (folder / "records").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    number = next(n for n, line in enumerate(lines) if line["file_name"] == "000000-001.png")
    lines[number][key] = value
    lines[number] = {key: value for key, value in lines[number].items() if value is not ...}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="1 of 6 synthetic images are missing"):
        read_variants(folder, dataset, 2)
    assert f"{path}: line {number + 1} is left out: " in caplog.text and said in caplog.text
    assert run(dataset, folder, num_synthetic=2) == 1
    assert contents(folder) == before
    assert len(read_variants(folder, dataset)[0]) == 2


def test_damaged_lines_of_filters_are_left_out(tmp_path, caplog):
    lines = [
        {"file_name": ["a"], "score": 1}, {"file_name": "a.png", "score": "0.5"},
        {"file_name": "a.png", "score": float("nan")}, {"file_name": "a.png", "kept": "no"},
        {"file_name": "a.png", "score": 10**400}, {"file_name": "a.png", "score": 1},
    ]  # fmt: skip
    (tmp_path / "records").mkdir()
    (tmp_path / "records/id.1.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert read_scores(tmp_path) == {"a.png": {"score": 1}}
    assert caplog.text.count("is left out") == 5


@pytest.mark.parametrize("left", [0.5, 0.99, 8, 0])
def test_image_cut_short_does_not_count_and_is_made_again(photos, tmp_path, left):
    dataset, folder = trial(photos), tmp_path / "out"
    run(dataset, folder)
    before, cut = contents(folder), folder / "000002-001.png"
    content = cut.read_bytes()
    cut.write_bytes(content[: int(left * len(content)) if left < 1 else left])
    with pytest.raises(UserError, match=r"1 of 18 .*; 1 recorded file missing .* 000002-001"):
        read_variants(folder, dataset)
    assert run(dataset, folder) == 1
    assert contents(folder) == before


def test_back_and_forth_between_settings_never_mixes_images(photos, tmp_path):
    """An --overwrite that was killed, then a return to the first settings."""
    dataset, folder = trial(photos), tmp_path / "out"

    class Killed(Exception):
        pass

    class Other(Stub):
        def augment(self, images, labels, metadata, generators):
            if len(self.batches) == 2:
                raise Killed
            for generator in generators:
                torch.rand(1, generator=generator)
            return super().augment(images, labels, metadata, generators)

    def make(value, stub):
        options = {"num_synthetic": 3, "batch_size": 4}
        return generate(dataset, lambda: stub, folder, {"a": value}, **options)

    make(1, Stub())
    before = {name: digest for name, digest in contents(folder).items() if name.endswith("png")}
    with pytest.raises(Killed):
        make(2, Other())
    assert read_config(folder)["settings"] == {"a": 2}
    assert len(read_records(folder)) == 8
    make(1, Stub())
    assert read_config(folder)["settings"] == {"a": 1}
    assert len(read_records(folder)) == 18
    after = {name: digest for name, digest in contents(folder).items() if name.endswith("png")}
    assert after == before


def test_settings_in_which_trials_differ_are_named_with_their_values(photos, tmp_path):
    """Those of the images, of each class's UNet, and of how the words were learned."""
    folders = {}

    def make(seed, rate, unet="u", own_words=True, precision="no", **settings):
        trial_, rows = Trial(seed, 1), torch.full((1, 2), float(seed))
        folders[trial_] = tmp_path / "aug" / trial_.name
        config = json.dumps({"settings": {"learning_rate": rate, "model": "m"}})
        path = merged_file(tmp_path, trial_) if own_words else tmp_path / f"{seed}.safetensors"
        write_embeddings(path, {"<cat>": rows}, {"config": config})
        dataset = trial(photos, 1, seed=seed)
        of_cat = {"embeddings": rows_digest(rows), "unet": unet, "precision": precision}
        details = {"cat": {key: value for key, value in of_cat.items() if value}}
        settings = {"edits": [{"strength": 0.5}], "photos": dataset.photo_digest()} | settings
        given = None if own_words else str(tmp_path / "{seed}.safetensors")
        generate(dataset, Stub, folders[trial_], settings, num_synthetic=1, batch_size=4, seed=seed,
                 indices=dataset.indices(["cat"]), of_class=details, constants={"embeddings": None},
                 arguments={"embed_path": given})  # fmt: skip

    make(0, 1e-3)
    make(1, 1e-3)
    assert differing_settings(folders) == {}
    make(2, 5e-4, unet="v", own_words=False, edits=[{"strength": 1.0}], lora="sha")
    zero, one, two = (each.name for each in folders)
    half = [{"strength": 0.5}]
    assert differing_settings(folders) == {
        "edits": {zero: half, one: half, two: [{"strength": 1.0}]},
        "lora": {zero: None, one: None, two: "sha"},
        "unet of cat": {zero: "u", one: "u", two: "v"},
        "words: learning_rate": {zero: 1e-3, one: 1e-3, two: 5e-4},
    }
    merged_file(tmp_path, Trial(0, 1)).write_bytes(b"torn")  # then nobody knows
    assert differing_settings(folders)["words: learning_rate"] == {one: 1e-3, two: 5e-4}
    del folders[Trial(0, 1)], folders[Trial(2, 1)]
    make(3, 1e-3, precision="bf16")
    make(4, 1e-3, unet="of older code", precision=None)  # on a device that nobody knows
    assert differing_settings(folders) == {"precision": {one: "no", "seed=3_ex=1": "bf16"}}


def test_dataset_generates_and_then_serves_variants(photos, tmp_path):
    dataset = trial(photos, generative_aug=Stub(), synthetic_dir=tmp_path / "kept")
    dataset.synthetic_probability = 1.0
    real = dataset.get_image_by_idx(0)
    dataset.generate_augmentations(2)
    assert len(read_records(tmp_path / "kept")) == 12
    tensor, label = dataset[0]
    assert tensor.shape == (3, 256, 256)
    assert label == dataset.get_label_by_idx(0)
    in_memory = trial(photos, generative_aug=Stub())
    in_memory.generate_augmentations(2)
    for (path, _), (image, _) in zip(
        dataset.synthetic_examples[0], in_memory.synthetic_examples[0]
    ):
        assert ImageChops.difference(Image.open(path), image).getbbox() is None
        assert ImageChops.difference(real, image).getbbox() is not None
    again = trial(photos, synthetic_dir=tmp_path / "kept", synthetic_probability=0.0)
    assert torch.equal(again[0][0], trial(photos)[0][0])


def arguments(photos, model, *extra, steps=4):
    return [
        "--dataset=folder", f"--data_dir={photos}", "--experiment_name=exp",
        f"--model_path={model}", "--examples_per_class=1", f"--num_inference_steps={steps}", *extra,
    ]  # fmt: skip


def test_command_writes_images_records_and_config(photos, small_model, workdir, capsys):
    generate_augmentations.main(arguments(photos, small_model, "--num_synthetic", "2"))
    folder = workdir / "output/exp/aug/seed=0_ex=1"
    records = metadata(folder)
    assert len(records) == 6
    assert all(set(record) == RECORD_KEYS for record in records)
    assert [r["prompt"] for r in records[2:4]] == ["a photo of a stop sign"] * 2
    assert records[0]["aug"] == ["real-guidance"]
    assert records[0]["strength"] == [0.5]
    assert records[0]["mask"] == [False]
    config = json.loads((folder / "config.json").read_text())
    assert config["settings"]["num_inference_steps"] == 4
    assert config["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in folder.iterdir() if p.suffix != ".png") == [
        "config.json", "metadata.jsonl", "records",
    ]  # fmt: skip
    assert "real-guidance" in capsys.readouterr().err


def test_batches_and_classes_of_the_real_pipeline_agree(photos, small_model, workdir):
    def images(name, *extra):
        main = generate_augmentations.main
        main(arguments(photos, small_model, f"--aug_name={name}", "--num_synthetic=2", *extra))
        folder = workdir / f"output/exp/{name}/seed=0_ex=1"
        return {p.name: np.asarray(Image.open(p)).astype(int) for p in folder.glob("*.png")}

    whole = images("a", "--batch_size=16")
    for name, extra in {"b": ["--batch_size=1"], "c": ["--batch_size=4"]}.items():
        other = images(name, *extra)
        assert other.keys() == whole.keys()
        assert max(abs(other[key] - whole[key]).max() for key in whole) <= 2
    for class_name in ("toy train", "cat", "stop sign"):
        apart = images("d", "--class_name", class_name)
    assert apart.keys() == whole.keys()
    assert max(abs(apart[key] - whole[key]).max() for key in whole) <= 2
    assert len({image.tobytes() for image in whole.values()}) == 6


def test_other_settings_are_refused_and_overwritten_on_demand(
    photos, small_model, workdir, capsys, monkeypatch
):
    main, folder = generate_augmentations.main, workdir / "output/exp/aug/seed=0_ex=1"
    main(arguments(photos, small_model, "--num_synthetic=2"))
    before = contents(folder)
    main(arguments(photos, small_model, "--num_synthetic=2", "--batch_size=3"))  # no result key
    assert contents(folder) == before
    with pytest.raises(SystemExit) as ending:
        main(arguments(photos, small_model, "--num_synthetic=1", "--guidance_scale=3"))
    assert ending.value.code == 2
    assert "--guidance_scale: there 7.5, now 3.0;" in capsys.readouterr().err
    assert contents(folder) == before
    other = arguments(photos, small_model, "--num_synthetic=1", "--guidance_scale=3", "--overwrite")

    def broken(*_):
        raise UserError("no such weights")

    with monkeypatch.context() as patch:  # --overwrite costs nothing before the model is there
        patch.setattr(editing, "load_pipeline", broken)
        with pytest.raises(SystemExit):
            main(other)
    assert contents(folder) == before
    assert len(read_records(folder)) == 6
    main(other)
    assert {record["guidance_scale"][0] for record in metadata(folder)} == {3.0}
    assert len(list(folder.glob("*.png"))) == len(metadata(folder)) == 3
    assert not {contents(folder)[n] for n in contents(folder)} & set(before.values())


def test_kill_at_any_moment_and_run_again(photos, small_model, workdir):
    extra = ["--num_synthetic=6", "--batch_size=3", "--guidance_scale=2"]
    whole = arguments(photos, small_model, *extra, "--aug_name=whole")
    generate_augmentations.main(whole)
    cut = arguments(photos, small_model, *extra, "--aug_name=cut")
    folder = workdir / "output/exp/cut/seed=0_ex=1"
    kills = 0
    for wanted in (1, 4, 9, 14):
        process = forked(generate_augmentations.main, *cut)
        while process.is_alive() and len(list(folder.glob("*.png"))) < wanted:
            time.sleep(0.002)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2
    generate_augmentations.main(cut)
    assert contents(folder) == contents(workdir / "output/exp/whole/seed=0_ex=1")
    assert not list(workdir.rglob("*.tmp"))
    assert len(metadata(folder)) == 18


def test_model_for_inpainting_edits_the_region_alone(make, photos, inpainting_model, capsys):
    flags = ["--mask=1", "--dataset_args", f"masks={photos.parent / 'masks'}", "--strength=1"]
    status, err = make(*flags, f"--model_path={inpainting_model}")
    assert status == 0, err
    folder = Path("output/e/aug/seed=0_ex=1")
    for record in read_records(folder):
        source = np.asarray(Image.open(photos / record["source"]).convert("RGB"))
        mask = np.asarray(Image.open(photos.parent / "masks" / record["source"])) > 0
        image = np.asarray(Image.open(folder / record["file_name"]))
        assert np.array_equal(image[~mask], source[~mask])
        assert (image[mask] != source[mask]).any(axis=-1).mean() > 0.9
    status, err = make(f"--model_path={inpainting_model}", name="other")
    assert (status, err.splitlines()[-1]) == (2, (
        f"generate_augmentations.py: error: {inpainting_model} only inpaints: it needs "
        "--mask 1"
    ))  # fmt: skip


def test_prompts_of_a_file(make):
    Path("prompts.txt").write_text("\ufeffa {name} at night\n\n  a wet {name}\n", encoding="utf-8")
    assert make("--prompt", "prompts.txt")[0] == 0
    folder = Path("output/e/aug/seed=0_ex=1")
    assert read_config(folder)["settings"]["prompt"] == ["a {name} at night", "a wet {name}"]
    prompts = {record["prompt"] for record in read_records(folder)}
    assert prompts <= {f"a {n} at night" for n in NAMES} | {f"a wet {n}" for n in NAMES}
    assert {prompt[:5] for prompt in prompts} == {"a wet"} | {
        p[:5] for p in prompts if "night" in p
    }
    assert len({"night" in prompt for prompt in prompts}) == 2
    for text, message in ((None, "cannot read none.txt: No such file"), ("", "none.txt is empty")):
        if text is not None:
            Path("none.txt").write_text(text)
        status, err = make("--prompt", "none.txt", name="other")
        assert (status, err.count("\n")) == (2, 1) and message in err


NAMES = ("cat", "stop sign", "toy train")


@pytest.mark.parametrize(
    "flags", [["--scheduler=ddim"], ["--scheduler=dpm++"], ["--scheduler=unipc"],
              ["--scheduler=euler"], ["--scheduler=lcm"], ["--fit=crop"], ["--fit=squash"]],
)  # fmt: skip
def test_flag_changes_images_and_is_a_setting(make, flags):
    make(name="plain")
    assert make(*flags, name="other")[0] == 0
    plain, other = images_of("plain"), images_of("other")
    assert plain.keys() == other.keys() and len(plain) == 6
    assert all(np.abs(plain[n] - other[n]).max() > 2 for n in plain)
    status, err = make(*flags, name="plain")
    key = flags[0].removeprefix("--").split("=")[0]
    assert status == 2 and f"--{key}: there " in err


@pytest.mark.parametrize(
    "flags", [["--batch_size=auto"], ["--low_memory"], ["--batch_size=3"]]
)  # fmt: skip
def test_flag_is_no_setting_and_changes_images_hardly(make, monkeypatch, flags):
    make(name="plain")
    assert make(*flags, name="other")[0] == 0
    plain, other = images_of("plain"), images_of("other")
    assert all(np.abs(plain[n] - other[n]).max() <= 2 for n in plain)
    ids = {read_config(Path(f"output/e/{n}/seed=0_ex=1"))["id"] for n in ("plain", "other")}
    assert len(ids) == 1


def test_alternatives_have_full_batches(make, monkeypatch):
    """Two strengths, of which one is drawn per image: blocks hold twice as many images."""
    from semantic_aug.augmentations.sdedit import SDEditor

    sizes, edit = [], SDEditor._edit_batch

    def spy(self, images, *rest):
        sizes.append((self.strength, len(images)))
        return edit(self, images, *rest)

    monkeypatch.setattr(SDEditor, "_edit_batch", spy)
    make("--strength", 0.5, 1.0, "--batch_size=2", "--num_synthetic=4")
    assert sum(size for _, size in sizes) == 12
    assert max(size for _, size in sizes) == 2
    assert len(sizes) < 12


def rewrite_records(folder: Path, change) -> None:
    for path in (folder / "records").glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(change(record)) + "\n" for record in records))


@pytest.mark.parametrize("flags", [["--mask=1", "--strength=1"], ["--crop_to_object"]])
def test_images_of_masks_that_have_changed_are_refused(make, photos, flags):
    """Those of one class; the other classes' masks do not count."""
    folder = Path("output/e/aug/seed=0_ex=1")
    flags = [*flags, "--dataset_args", f"masks={photos.parent / 'masks'}"]
    assert make(*flags)[0] == 0
    before, identity = contents(folder), read_config(folder)["id"]
    masks = {record["class_name"]: record["masks"] for record in read_records(folder)}
    assert len(set(masks.values())) == 3
    for path in (photos.parent / "masks/train/cat").iterdir():
        Image.fromarray(np.asarray(Image.open(path))[:, ::-1]).save(path)
    status, err = make(*flags)
    assert status == 2 and "holds images made with other masks for: cat; choose another" in err
    crop = {"crop_to_object": True} if "--crop_to_object" in flags else {}
    dataset = trial(photos, 1, masks=str(photos.parent / "masks"), **crop)
    with pytest.raises(UserError, match="was made with other masks of 'cat' than"):
        read_variants(folder, dataset)
    assert make(*flags, "--classes", "stop sign")[0] == 0
    assert contents(folder) == before
    assert make(*flags, "--overwrite")[0] == 0
    assert read_config(folder)["id"] == identity
    after = contents(folder)
    cat = {record["file_name"] for record in read_records(folder) if record["class_name"] == "cat"}
    changed = {name for name in before if name.endswith("png") and before[name] != after[name]}
    assert changed == cat and len(read_variants(folder, dataset)[0]) == 2
    # Older records say nothing of masks: they are accepted.
    rewrite_records(folder, lambda record: {k: v for k, v in record.items() if k != "masks"})
    for path in (photos.parent / "masks/train/cat").iterdir():
        Image.new("L", (48, 40), 255).save(path)
    assert make(*flags)[0] == 0
    assert {n: d for n, d in contents(folder).items() if n.endswith("png")} == {
        n: d for n, d in after.items() if n.endswith("png")
    }


def test_images_of_another_precision_are_refused(make, monkeypatch, capsys):
    folder = Path("output/e/aug/seed=0_ex=1")
    make()
    before = contents(folder)
    assert {record["precision"] for record in read_records(folder)} == {"no"}
    older = dict.fromkeys(("cat", "toy train"), "fp16")
    rewrite_records(folder, lambda r: r | {"precision": older.get(r["class_name"], "no")})
    status, err = make()
    said = "made in another precision (there fp16, now no) for: cat, toy train; choose another"
    assert status == 2 and said in err
    dtypes, pick = [], editing.pick_dtype
    monkeypatch.setattr(
        editing, "pick_dtype", lambda device, p: dtypes.append(p) or pick(device, p)
    )
    generate_augmentations.main([f"--reproduce={folder / '000000-000.png'}", "--device=cpu"])
    assert dtypes == ["fp16"]
    assert make("--overwrite")[0] == 0
    assert {record["precision"] for record in read_records(folder)} == {"no"}
    assert contents(folder) == before
    # Older records do not say it: the arguments do.
    rewrite_records(folder, lambda record: {k: v for k, v in record.items() if k != "precision"})
    assert make()[0] == 0
    monkeypatch.setattr(planning, "precision_of", lambda args, device: "bf16")
    status, err = make()
    assert status == 2 and "made in another precision (there no, now bf16) for: cat, stop" in err


@pytest.mark.parametrize(
    "arguments, device, expected",
    [
        ({"device": "cpu", "mixed_precision": "fp16"}, "cuda: A100", "no"),
        ({"device": "cuda:1", "mixed_precision": None}, "cpu", "fp16"),
        ({"device": None, "mixed_precision": "bf16"}, "cuda: A100", "bf16"),
        ({"device": None, "mixed_precision": None}, "cpu", "no"),
        ({"device": None, "mixed_precision": None}, None, None),
    ],
)
def test_precision_of_older_images_is_that_of_their_device(tmp_path, arguments, device, expected):
    folder = tmp_path / "aug" / "seed=3_ex=2"
    write_config(folder, {}, arguments)
    if device:
        (tmp_path / "timing").mkdir()
        work = {"stage": "generate_augmentations", "method": "aug", "seed": 3, "device": device,
                "examples_per_class": 2, "images": 9, "seconds": 1.0, "finished": 1}  # fmt: skip
        others = [work | {"seed": 4, "device": "mps"}, work | {"method": "b", "device": "mps"}]
        text = "".join(json.dumps(each) + "\n" for each in [work, *others])
        (tmp_path / "timing" / "host-1.jsonl").write_text(text)
    assert older_precision(folder) == expected


def test_strange_masks_are_named(make, photos):
    masks = photos.parent / "masks"
    (cat,) = (p for p in (masks / "train" / "cat").iterdir() if p.name == "0.png")
    for value, what in ((0, "empty"), (255, "the whole photo")):
        for path in cat.parent.iterdir():
            Image.new("L", (48, 40), value).save(path)
        status, err = make(
            "--mask=1", "--dataset_args", f"masks={masks}", "--classes", "cat", name=what[:5]
        )
        assert status == 0
        assert re.search(rf"train/cat/\d\.png: its mask is {what}", err)
    assert make("--mask_feather=-1")[0] == 2


def test_full_disk_says_how_many_were_made_and_loses_none(make, monkeypatch):
    save, saved = making._save, []

    def full(image, path):
        if len(saved) == 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(image, path)
        saved.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(making, "WRITERS", 1)
        patch.setattr(making, "_save", full)
        status, err = make("--batch_size=2")
    assert status == 2
    assert "output/e/aug/seed=0_ex=1: 4 images made before this error" in err
    assert "No space left on device; make room and run the same command again" in err
    folder = Path("output/e/aug/seed=0_ex=1")
    assert len(read_records(folder)) == len(images_of()) == 4
    assert make("--batch_size=2")[0] == 0
    assert len(read_records(folder)) == 6


def test_augmentation_that_takes_no_options_is_named(photos, small_model, workdir, capsys):
    with pytest.raises(SystemExit) as ended:
        generate_augmentations.main(arguments(photos, small_model, "--aug=test_generation:Stub"))
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "--aug: test_generation:Stub cannot be made: " in err


@pytest.mark.parametrize("near", [0, 60])
def test_whole_images_are_found_on_a_near_and_on_a_far_disk(tmp_path, monkeypatch, near):
    monkeypatch.setattr(synthesis_records, "PROBED", 3)
    monkeypatch.setattr(synthesis_records, "NEAR", near)
    names = [f"{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        if number % 3 == 0:
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-4])
    assert whole_images(tmp_path, names) == {name for n, name in enumerate(names) if n % 3}
    assert whole_images(tmp_path, []) == set()


def test_a_pipe_in_place_of_an_image_is_not_waited_for(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert whole_images(tmp_path, ["a.png", "b.png", "c.png"]) == {"a.png"}


def test_one_image_again(make, photos, workdir, small_model, capsys):
    make("--strength", 0.5, 1.0, "--prompt", "a {name}", "one {name}", "--batch_size=1")
    folder = Path("output/e/aug/seed=0_ex=1")
    before = contents(folder)
    path = folder / "000001-001.png"

    def again(*flags):
        capsys.readouterr()
        try:
            generate_augmentations.main([f"--reproduce={path}", "--device=cpu", *flags])
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, *capsys.readouterr()

    assert again()[:2] == (0, f"{path}: equal\n")
    assert contents(folder) == before
    moved = photos.rename(photos.parent / "moved")
    assert again(f"--data_dir={moved}")[:2] == (0, f"{path}: equal\n")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    status, _, err = again()
    assert (status, err.count("\n")) == (2, 1) and f"cannot read image {path}: " in err
    path.write_bytes(whole)
    with Image.open(path) as image:
        pixels = np.asarray(image).astype(np.uint8).copy()
    Image.fromarray(pixels[:20]).save(path)
    assert again(f"--data_dir={moved}")[:2] == (1, f"{path}: its size is (48, 20), not (48, 40)\n")
    pixels[3, 3] ^= 64
    Image.fromarray(pixels).save(path)
    status, out, _ = again(f"--data_dir={moved}")
    assert (status, out) == (1, f"{path}: differs by up to 64 of 255\n")
    source = next(r["source"] for r in read_records(folder) if r["file_name"] == path.name)
    Image.new("RGB", (48, 40)).save(moved / source)
    status, _, err = again(f"--data_dir={moved}")
    assert status == 2 and "was made with other photos of the trial: then" in err
    identity = read_config(folder)["id"]
    (folder / "records" / f"{identity}.z.jsonl").write_text(
        json.dumps(read_records(folder)[-1] | {"source": "cat/9.jpg"}) + "\n"
    )
    path = folder / read_records(folder)[-1]["file_name"]
    status, _, err = again(f"--data_dir={moved}")
    assert status == 2 and "was made from cat/9.jpg, which is not" in err
    path = folder / "000099-000.png"
    status, _, err = again()
    assert (status, err.count("\n")) == (2, 1) and "is no image of generate_augm" in err
    config = json.loads((folder / "config.json").read_text())
    path = folder / "000001-001.png"
    (folder / "config.json").write_text(json.dumps(config | {"settings": {}}))
    status, _, err = again()
    assert (status, err.count("\n")) == (2, 1) and "config.json is damaged: edits is None" in err


def test_finished_work_loads_no_model_and_still_derives_metadata(
    photos, small_model, workdir, monkeypatch, capsys
):
    main, folder = generate_augmentations.main, workdir / "output/exp/aug/seed=0_ex=1"
    main(arguments(photos, small_model, "--num_synthetic=2"))
    before = contents(folder)
    (folder / "metadata.jsonl").unlink()  # as if the process had been killed before writing it

    def loaded(*_):
        raise AssertionError("a model was loaded for nothing")

    monkeypatch.setattr(editing, "load_pipeline", loaded)
    main(arguments(photos, small_model, "--num_synthetic=2"))
    assert contents(folder) == before
    (folder / "000000-000.png").unlink()
    other = next(
        index for index in range(2) if 0 not in shard_blocks(2, index, 2)
    )  # not the shard of the block that has a gap
    main(arguments(photos, small_model, "--num_synthetic=2", f"--shard_index={other}",
                   "--num_shards=2"))  # fmt: skip
    assert "0 images made now; 5 of 6 exist" in capsys.readouterr().out
    main(arguments(photos, small_model, "--num_synthetic=2", "--shard_index=2", "--num_shards=9"))
    assert capsys.readouterr().out == "nothing to do: shard 2 of 9 has none of 2 blocks\n"


def test_later_records_are_read_later_whatever_the_clocks_of_nodes_say(tmp_path, monkeypatch):
    job = {"file_name": "000000-000.png", "label": 0, "class_name": "cat", "source": "s",
           "index": 0, "repeat": 0}  # fmt: skip
    (tmp_path / "000000-000.png").write_bytes(b"png")
    monkeypatch.setattr(time, "time_ns", lambda: 2000)  # a node whose clock is ahead
    with RecordWriter(tmp_path, "id", (0, 1)) as writer:
        writer.write(job | {"prompt": "earlier"})
    monkeypatch.setattr(time, "time_ns", lambda: 1000)
    with RecordWriter(tmp_path, "id", (0, 1)) as writer:
        writer.write(job | {"prompt": "later"})
    assert [record["prompt"] for record in read_records(tmp_path, "id")] == ["later"]


def test_files_that_others_rename_or_remove_meanwhile_are_no_trouble(tmp_path, monkeypatch):
    real = os.scandir

    class Gone:
        """An entry of a folder whose file was renamed before it was looked at."""

        name = ".b.png.tmp"

        def stat(self):
            raise FileNotFoundError(self.name)

    class Listing(list):
        __enter__, __exit__ = lambda self: self, lambda self, *_: None

    monkeypatch.setattr(os, "scandir", lambda path: Listing([Gone(), *real(path)]))
    assert read_records(tmp_path, "id") == []
    assert list(_lines(tmp_path / "records" / "removed.jsonl")) == []


def test_hugging_face_reads_the_folder(small_model, workdir):
    from datasets import load_dataset

    for label, name in enumerate(("train", "test", "toy train")):
        for number in range(2):
            draw_photo(workdir / "photos" / name / f"{number}.png", (90 * label, 9, 9), number)
    generate_augmentations.main(arguments(workdir / "photos", small_model, "--num_synthetic=2"))
    folder = workdir / "output/exp/aug/seed=0_ex=1"
    data = load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(workdir / "cache"))
    rows = list(data["train"])
    assert list(data) == ["train"]
    assert len(rows) == 6
    expected = {record["class_name"]: record["label"] for record in metadata(folder)}
    assert expected == {"test": 0, "toy train": 1, "train": 2}
    assert {row["class_name"]: row["label"] for row in rows} == expected
    assert all(row["image"].size == (48, 40) for row in rows)
