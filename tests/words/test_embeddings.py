"""Token names, and the files of learned words: written, read, merged."""

import copy
import functools
import json
import pickle
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import build_tokenizer
from diffusers import StableDiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from semantic_aug import UserError
from semantic_aug.words.embeddings import (
    LearnedWords,
    class_tokens,
    expand_token,
    merge_embeddings,
    placeholder_token,
    placeholder_tokens,
    read_embeddings,
    read_header,
    read_words,
    token_for,
    vector_tokens,
    write_embeddings,
)
from semantic_aug.words.prompts import template_ids
from semantic_aug.words.rows import add_tokens, rows_in_place

patient = settings(deadline=None, max_examples=60)  # slow is no failure
FORMS = ("NFC", "NFD")

ODD_NAMES = [
    "", " ", "cat", "Cat", "CAT", " cat ", "stop sign", "stop_sign", "MOTOR Block", "motor\tblock",
    "a/b", "../x", "<cat>", ">", "<", "{name}", "{}", "*", "%s", "cat_1", "\u0130stanbul",
    "I\u0307", "i\u0307", "\u0131", "e\u0301", "E\u0301", "\u00e9", "\u212b", "\u212a", "\u2126",
    "\u039f\u0394\u039f\u03a3", "\u03c3\u03c2\u03a3", "\u1e9e", "\u00df", "\ufb01n", "\u0345\u0391",
    "q\u0323\u0307", "q\u0307\u0323", "\u1100\u1161\u11a8", "\U0001f697 car", "\u81ea\u52d5\u8eca",
    "\u0645\u062d\u0631\u0643", "a\u00a0b", "a\u3000b", "a\u200db", "a\u00adb", "\ufeffa", "a\x00b",
    "a\x85b", "a\x7fb", "caf\udce9", "x" * 500, "nut, bolt & washer (M8x1.25)", "</w>", "\u0120a",
]  # fmt: skip
names = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(ODD_NAMES)), max_size=10)


@functools.cache
def the_tokenizer():
    return build_tokenizer()


def rows(num_vectors: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_vectors, dim, generator=torch.Generator().manual_seed(seed))


def merge(files, path: Path, header) -> list[str]:
    return merge_embeddings([LearnedWords.read(file) for file in files], path, header)


def expanded(prompt: str, tokenizer) -> str:
    """What stock diffusers makes of a prompt."""
    return TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)


# --- tokens ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, token",
    [
        ("cat", "<cat>"),
        ("stop sign", "<stop_sign>"),
        ("MOTOR Block", "<motor_block>"),
        (" toy\ttrain ", "<toy_train>"),
        ("É", "<\u00e9>"),
        ("E\u0301", "<\u00e9>"),
        ("STRA\u00dfE", "<stra\u00dfe>"),
        ("\u0130zmir", "<i\u0307zmir>"),
        ("<cat>", "<_cat_>"),
        ("a/b..", "<a/b..>"),
        ("", "<>"),
    ],
)
def test_placeholder_token(name, token):
    assert placeholder_token(name) == token


@patient
@given(st.one_of(st.text(), st.sampled_from(ODD_NAMES)))
@example("".join(ODD_NAMES))
def test_placeholder_token_is_a_fixed_point_of_prompt_normalisation(name):
    token = placeholder_token(name)
    assert token[0] == "<" and token[-1] == ">"
    assert not any(char.isspace() or char in "<>" for char in token[1:-1])
    assert unicodedata.is_normalized("NFC", token)
    assert placeholder_token(token[1:-1]) == token
    assert all(placeholder_token(unicodedata.normalize(form, name)) == token for form in FORMS)
    assert the_tokenizer().backend_tokenizer.normalizer.normalize_str(token) == token


@patient
@given(names)
@example(ODD_NAMES)
@example(ODD_NAMES[::-1])
@example(["Cat", "cat", "cat-2", "CAT"])
def test_tokens_are_unique_and_stay_with_their_class(class_names):
    tokens = placeholder_tokens(class_names)
    assert list(tokens) == list(dict.fromkeys(class_names))
    assert len(set(tokens.values())) == len(tokens)
    half = class_names[: len(class_names) // 2]
    assert placeholder_tokens(half) == {name: tokens[name] for name in half}


def test_tokens_that_would_meet_get_a_number():
    assert placeholder_tokens(["Cat", "cat", "cat-2", "dog"]) == {
        "Cat": "<cat>",
        "cat": "<cat-2>",
        "cat-2": "<cat-2-2>",
        "dog": "<dog>",
    }


@settings(deadline=None, max_examples=25)
@given(names)
@example(ODD_NAMES)
def test_tokens_survive_the_tokenizer_with_all_their_vectors(class_names):
    tokenizer = copy.deepcopy(the_tokenizer())
    tokens = list(placeholder_tokens(class_names).values())
    for token in tokens:
        ids = add_tokens(tokenizer, token, 3)
        assert ids == list(range(ids[0], ids[0] + 3))
        assert ids[0] >= len(the_tokenizer())
    for token in tokens:
        prompt = f"a photo of a {token}"
        words = tokenizer.tokenize(prompt)
        assert words[-1] == token
        assert words[:-1] == the_tokenizer().tokenize("a photo of a")
        stock = expanded(prompt, tokenizer)
        assert stock == expand_token(prompt, token, 3)
        assert tokenizer.tokenize(stock)[-3:] == vector_tokens(token, 3)
        assert tokenizer.tokenize(f"{token}, {token}s")[::2][0] == token


def test_vectors_are_named_as_stock_diffusers_names_them():
    assert vector_tokens("<cat>", 3) == ["<cat>", "<cat>_1", "<cat>_2"]
    assert expand_token("a <cat> and <cat>", "<cat>", 2) == "a <cat> <cat>_1 and <cat> <cat>_1"
    assert expand_token("a <cat>", "<cat>", 1) == "a <cat>"


def test_token_of_the_model_s_own_vocabulary_is_refused():
    tokenizer = copy.deepcopy(the_tokenizer())
    with pytest.raises(UserError, match=r"<\|startoftext\|> exists already"):
        add_tokens(tokenizer, placeholder_token("|startoftext|"), 2)
    assert len(tokenizer) == len(the_tokenizer())


# --- the same word here and in stock diffusers -----------------------------------------------


@pytest.fixture
def stock(small_model):
    return StableDiffusionPipeline.from_pretrained(small_model, safety_checker=None)


def embedding_in_training(pipeline, token: str, vectors: torch.Tensor, template: str):
    """[1, 77, dim]: what the UNet sees of a template while a word is trained."""
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    first_id = add_tokens(tokenizer, token, len(vectors))[0]
    ids = template_ids(tokenizer, [template], token, len(vectors))
    with torch.no_grad(), rows_in_place(pipeline.text_encoder, vectors, first_id):
        return pipeline.text_encoder(ids)[0]


def embedding_in_stock(pipeline, prompt: str):
    return pipeline.encode_prompt(prompt, "cpu", 1, False)[0]


@pytest.mark.parametrize("name", ["MOTOR Block", "\u0130stanbul Motor", "cat"])
def test_word_means_the_same_in_stock_diffusers(stock, tmp_path, name):
    vectors, other = rows(3), rows(2, seed=1)
    token, template = placeholder_token(name), "a dark photo of the {}"
    ours = embedding_in_training(stock, token, vectors, template)
    path, merged = tmp_path / "learned_embeds.safetensors", tmp_path / "merged.safetensors"
    write_embeddings(path, {token: vectors}, {"class": name})
    write_embeddings(tmp_path / "other.safetensors", {"<other>": other}, {"class": "other"})
    merge([tmp_path / "other.safetensors", path], merged, {"seed": 0})

    plain = embedding_in_stock(stock, template.format(token))
    assert not torch.allclose(plain, ours, atol=1e-3)  # the word is not known yet
    stock.load_textual_inversion(path)
    assert torch.equal(embedding_in_stock(stock, template.format(token)), ours)

    stock.unload_textual_inversion()
    stock.load_textual_inversion([{t: tensor} for t, tensor in load_file(merged).items()])
    assert torch.equal(embedding_in_stock(stock, template.format(token)), ours)
    both = embedding_in_stock(stock, "a photo of a <other>")
    assert not torch.equal(both, embedding_in_stock(stock, "a photo of a other"))


# --- files -----------------------------------------------------------------------------------

HEADER = {"model": "a/b", "class": "Stop \u00e9 \U0001f697", "seed": 3, "steps": 100}


def test_file_holds_float32_rows_and_a_header_of_texts(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    write_embeddings(path, {"<a>": rows(2).half().requires_grad_(), "<b>": rows(1, seed=1)}, HEADER)
    found = read_embeddings(path)
    assert found.keys() == {"<a>", "<b>"}
    assert torch.equal(found["<a>"], rows(2).half().float())
    assert found["<a>"].dtype == torch.float32
    assert read_header(path) == {
        "model": "a/b",
        "class": "Stop \u00e9 \U0001f697",
        "seed": "3",
        "steps": "100",
        "format_version": "1",
    }
    assert torch.equal(load_file(path)["<b>"], rows(1, seed=1))  # as everybody reads it
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == read_header(path)


def test_equal_words_give_equal_bytes(tmp_path):
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        header = dict(reversed(HEADER.items())) if number % 2 else HEADER
        write_embeddings(path, {"<a>": rows(2), "<b>": rows(3)}, header)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_undecodable_class_name_can_be_written(tmp_path):
    write_embeddings(tmp_path / "a.safetensors", {"<a>": rows(1)}, {"class": "caf\udce9"})
    assert read_header(tmp_path / "a.safetensors")["class"] == r"caf\udce9"


@pytest.mark.parametrize("suffix", ["bin", "pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_old_dictionaries_are_read(tmp_path, suffix, zipped):
    path = tmp_path / f"learned_embeds.{suffix}"
    old = {"<Cat>": rows(1)[0].half(), "<dog>": rows(16)}
    torch.save(old, path, _use_new_zipfile_serialization=zipped)
    found = read_embeddings(path)
    assert found.keys() == {"<cat>", "<dog>"}
    assert found["<cat>"].shape == (1, 32) and found["<cat>"].dtype == torch.float32
    assert torch.equal(found["<cat>"][0], rows(1)[0].half().float())
    assert torch.equal(found["<dog>"], rows(16))
    assert read_header(path) == {}


A1111 = {"string_to_token": {"*": 265}, "step": 99, "sd_checkpoint": None}
ORIGINAL = {"string_to_token": {"*": torch.tensor(265)}}


@pytest.mark.parametrize(
    "suffix, content, token",
    [
        ("pt", A1111 | {"string_to_param": {"*": rows(2)}, "name": "My Cat"}, "<my_cat>"),
        ("pt", A1111 | {"string_to_param": {"*": rows(2)}, "name": None}, "<a_file>"),
        ("pt", ORIGINAL | {"string_to_param": torch.nn.ParameterDict({"*": rows(2)})}, "<a_file>"),
        ("bin", {"string_to_param": {"SKS": rows(2).requires_grad_()}}, "sks"),
        ("pt", {"emb_params": rows(2)}, "<a_file>"),
        ("safetensors", {"emb_params": rows(2)}, "<a_file>"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_words_of_other_tools_are_read(tmp_path, suffix, content, token):
    path = tmp_path / f"A file.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(content, path)
    for found in (read_embeddings(path), *read_words(path)):
        assert list(found) == [token] and torch.equal(found[token], rows(2))
        assert not found[token].requires_grad
    assert read_header(path) == {}


def test_words_for_both_text_encoders_in_one_file(tmp_path):
    path = tmp_path / "my-cat.safetensors"
    save_file({"clip_g": rows(2, dim=48), "clip_l": rows(2)}, path)
    for count in (None, 2):
        first, second = read_words(path, count)
        assert torch.equal(first["<my-cat>"], rows(2))
        assert torch.equal(second["<my-cat>"], rows(2, dim=48))
    with pytest.raises(UserError, match=r"my-cat\.safetensors holds a word for the two text enc"):
        read_words(path, 1)
    for part in ("t5xxl", None):
        save_file({"clip_l": rows(2)} | ({part: rows(2)} if part else {}), path)
        with pytest.raises(UserError, match=r"holds a word for clip_l(, t5xxl)?, which is neither"):
            read_words(path)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_pointer_of_git_is_named(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3819\n"
    )
    reads = [read_embeddings, read_words] + [read_header] * (suffix == "safetensors")
    for read in reads:
        with pytest.raises(UserError, match=rf"x\.{suffix} is a Git LFS pointer, .* git lfs pull"):
            read(path)


class Trap:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle", "inside"])
@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.safetensors"])
@pytest.mark.filterwarnings("error")
def test_pickle_is_never_run(tmp_path, form, name):
    path, made = tmp_path / name, tmp_path / "made"
    content = {"<a>": rows(1), "trap": Trap(made)} if form == "inside" else Trap(made)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "old torch")
    with pytest.raises(UserError) as refused:
        read_embeddings(path)
    assert not made.exists()
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    if path.suffix != ".safetensors":
        assert "is not loaded, because a pickle can run code" in str(refused.value)
    pickle.loads(pickle.dumps(Trap(made)))
    assert made.exists()  # so the trap is one


def nan_at(row: int) -> torch.Tensor:
    broken = rows(3)
    broken[row, 5] = float("nan")
    return broken


@pytest.mark.parametrize(
    "content",
    [[rows(1)], rows(1), {"words": {"*": rows(1)}}, {1: rows(1)}, "text", None,
     {"string_to_param": {"*": "text"}}, {"emb_params": [1.0]}],
    ids=["list", "tensor", "nested", "number as token", "text", "nothing",
         "text for rows", "list for rows"],
)  # fmt: skip
def test_other_objects_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"x\.bin: expected a dictionary \{token: "):
        read_embeddings(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "expected a dictionary"),
        ({"<a>": rows(4).reshape(2, 2, 32)}, "expected a dictionary"),
        ({"<a>": torch.tensor(1.0)}, "expected a dictionary"),
        ({"<a>": torch.zeros(0, 32)}, "expected a dictionary"),
        ({"<a>": torch.zeros(0)}, "expected a dictionary"),
        ({"<a>": torch.ones(2, 32, dtype=torch.int64)}, "expected a dictionary"),
        ({"<a>": rows(1), "<b>": rows(1, dim=48)}, r"mixes embeddings of widths \[32, 48\]"),
        ({"<a>": rows(3), "<b>": nan_at(2)}, r"not finite: <b>; train"),
        ({"<a>": rows(1) / 0}, r"not finite: <a>"),
        ({"<A>": rows(1), "<a>": rows(1)}, "differ only in letter case"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_files_of_other_things_are_refused(tmp_path, suffix, content, message):
    path = tmp_path / f"x.{suffix}"
    (torch.save if suffix == "bin" else save_file)(content, path)
    with pytest.raises(UserError, match=message) as refused:
        read_embeddings(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_missing_file_is_named(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(UserError, match=r"embedding file .* does not exist") as refused:
        read_embeddings(path)
    assert str(path) in str(refused.value)
    path.mkdir()
    with pytest.raises(UserError, match="does not exist"):
        read_embeddings(path)


@patient
@given(st.sampled_from(["zip.bin", "old.bin", "a.safetensors"]), st.data())
def test_broken_files_are_one_line(tmp_path_factory, name, data):
    whole = broken_originals()[name]
    if data.draw(st.booleans(), label="truncate"):
        content = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        content = whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at + 1 :]
    path = tmp_path_factory.getbasetemp() / f"broken-{name}"
    path.write_bytes(content)
    for read in (read_embeddings, read_header):
        try:
            read(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@functools.cache
def broken_originals() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.save({"<a>": rows(1, dim=4)}, root / "zip.bin")
        torch.save({"<a>": rows(1, dim=4)}, root / "old.bin", _use_new_zipfile_serialization=False)
        write_embeddings(root / "a.safetensors", {"<a>": rows(1, dim=4)}, HEADER)
        return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.mark.parametrize("size", [0, 4, 60])
def test_truncated_safetensors(tmp_path, size):
    path = tmp_path / "a.safetensors"
    write_embeddings(path, {"<a>": rows(1)}, HEADER)
    path.write_bytes(path.read_bytes()[:size])
    for read in (read_embeddings, read_header):
        with pytest.raises(UserError, match=r"cannot read embedding file .*a\.safetensors: \w"):
            read(path)


# --- classes and their tokens ----------------------------------------------------------------


def test_class_of_a_token_comes_from_the_header():
    assert class_tokens({"class": "Stop Sign"}, ["<my-sign>"]) == {"Stop Sign": "<my-sign>"}
    header = {"classes": json.dumps({"<cat>": "Cat", "<cat-2>": "cat"})}
    assert class_tokens(header, ["<cat>", "<cat-2>"]) == {"Cat": "<cat>", "cat": "<cat-2>"}
    assert class_tokens({}, ["<cat>"]) == {}


def test_token_of_a_class():
    known = {"Cat": "<cat>", "cat": "<cat-2>", "dog": "<hound>"}
    tokens = ["<cat>", "<cat-2>", "<hound>", "<dog>", "<bird>"]
    assert token_for("Cat", known, tokens) == "<cat>"
    assert token_for("cat", known, tokens) == "<cat-2>"
    assert token_for("dog", known, tokens) == "<hound>"
    assert token_for("Bird", known, tokens) == "<bird>"  # an old file says nothing of classes
    assert token_for("fish", known, tokens) is None
    assert token_for("dog", known, ["<dog>"]) is None  # the header knows better


def test_word_of_another_class_is_not_taken():
    """Of the classes Cat and cat only the first was trained: its token is the other's by name."""
    assert token_for("cat", {"Cat": "<cat>"}, ["<cat>"]) is None
    assert token_for("CAT", {"Cat": "<cat>"}, ["<cat>"]) is None


# --- merging ---------------------------------------------------------------------------------


def write_class(folder: Path, name: str, token: str, vectors: torch.Tensor) -> Path:
    path = folder / name / "learned_embeds.safetensors"
    write_embeddings(path, {token: vectors}, {"class": name, "seed": 0})
    return path


def test_merged_file_has_every_word_and_its_class(tmp_path):
    files = [
        write_class(tmp_path, "Stop Sign", "<stop_sign>", rows(2)),
        write_class(tmp_path, "Cat", "<cat>", rows(1, seed=1)),
        write_class(tmp_path, "cat", "<cat-2>", rows(3, seed=2)),
    ]
    old = tmp_path / "dog" / "learned_embeds.bin"
    old.parent.mkdir()
    torch.save({"<dog>": rows(1, seed=3)[0]}, old)
    merged = tmp_path / "out" / "seed=0_ex=4.safetensors"
    tokens = merge([*files, old], merged, {"seed": 0, "examples_per_class": 4})
    assert tokens == ["<cat-2>", "<cat>", "<dog>", "<stop_sign>"]
    found = read_embeddings(merged)
    assert {token: len(each) for token, each in found.items()} == {
        "<stop_sign>": 2, "<cat>": 1, "<cat-2>": 3, "<dog>": 1,
    }  # fmt: skip
    assert torch.equal(found["<cat-2>"], rows(3, seed=2))
    header = read_header(merged)
    assert (header["seed"], header["examples_per_class"]) == ("0", "4")
    known = class_tokens(header, found)
    assert known == {"Stop Sign": "<stop_sign>", "Cat": "<cat>", "cat": "<cat-2>"}
    assert token_for("dog", known, found) == "<dog>"


def test_merging_again_gives_the_same_bytes(tmp_path):
    files = [write_class(tmp_path, f"class {n}", f"<class_{n}>", rows(2, seed=n)) for n in range(9)]
    contents = set()
    for number in range(4):
        merged = tmp_path / f"{number}.safetensors"
        merge(files, merged, {"seed": 0, "model": "m", "dataset": "d", "config": "{}"})
        contents.add(merged.read_bytes())
    assert len(contents) == 1


def test_one_token_in_two_files_is_refused(tmp_path):
    files = [
        write_class(tmp_path, "cat", "<cat>", rows(1)),
        write_class(tmp_path, "Cat", "<cat>", rows(1)),
    ]
    with pytest.raises(UserError, match=r"token <cat> is in .*/cat/.* and in .*/Cat/"):
        merge(files, tmp_path / "out.safetensors", {})
    assert not (tmp_path / "out.safetensors").exists()


def test_word_of_one_class_from_a_file(tmp_path):
    path = write_class(tmp_path, "dog", "<hound>", rows(2))
    words = LearnedWords.read(path)
    assert words.classes == {"<hound>": "dog"}
    renamed = words.as_word_of("my dog", "<my_dog>")
    assert renamed.classes == {"<my_dog>": "my dog"}
    (found,) = renamed.rows
    assert list(found) == ["<my_dog>"] and torch.equal(found["<my_dog>"], rows(2))
    cat = write_class(tmp_path, "cat", "<cat>", rows(1, seed=1))
    merge([path, cat], tmp_path / "both.safetensors", {})
    both = LearnedWords.read(tmp_path / "both.safetensors")
    assert torch.equal(both.as_word_of("dog", "<x>").rows[0]["<x>"], rows(2))
    with pytest.raises(UserError, match=r"has several words \(<cat>, <hound>\) and .* 'bird'"):
        both.as_word_of("bird", "<bird>")


def test_words_of_different_models_are_not_merged(tmp_path):
    files = [
        write_class(tmp_path, "cat", "<cat>", rows(1)),
        write_class(tmp_path, "dog", "<dog>", rows(1, dim=48)),
    ]
    with pytest.raises(UserError, match=r"32 in .*/cat/.*, 48 in .*/dog/"):
        merge(files, tmp_path / "out.safetensors", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat", "dog"]
