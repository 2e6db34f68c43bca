"""The notebooks of docs/: what is kept in them, and that they run."""

import ast
import inspect
import json
import re
import sys

import pytest
from conftest import ROOT

import semantic_aug

sys.path.insert(0, str(ROOT / "scripts"))

NAMES = ("quickstart", "own_photos")
MOST = 400_000  # bytes, with all pictures
# What ends each notebook: the last table, with the names of its columns and rows.
LAST_TABLE = {
    "quickstart": {"mean_accuracy", "ci95_low", "ci95_high", "photos and edits", "gain"},
    "own_photos": {"photo", "true", "class", "probability"},
}


def read(name: str) -> dict:
    return json.loads((ROOT / f"docs/{name}.ipynb").read_text(encoding="utf-8"))


def cells(notebook: dict, kind: str) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def outputs(notebook: dict) -> list[dict]:
    return [output for cell in cells(notebook, "code") for output in cell["outputs"]]


def check_outputs(name: str, notebook: dict) -> None:
    """Every cell has run, in order, and left nothing but results and small pictures."""
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    found = outputs(notebook)
    assert {each["output_type"] for each in found} <= {"stream", "execute_result", "display_data"}
    assert {each["name"] for each in found if each["output_type"] == "stream"} <= {"stdout"}
    kinds = [kind for each in found for kind in each.get("data", ())]
    assert set(kinds) == {"text/plain", "text/html", "image/jpeg"}
    assert kinds.count("image/jpeg") >= 3
    assert all(len(source(cell).splitlines()) <= 20 for cell in code)
    tables = [each["data"] for each in found if "text/html" in each.get("data", ())]
    last = re.findall(r"<th>(.*?)</th>", "".join(tables[-1]["text/html"]))
    assert LAST_TABLE[name] <= {*last}
    text = json.dumps(notebook)
    assert len(text) < MOST
    assert not re.search(r"/(home|root|tmp|Users|usr|opt|work|mnt)/|site-packages", text)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept(name):
    notebook = read(name)
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    check_outputs(name, notebook)
    assert 8 <= len(cells(notebook, "code")) <= 13


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files(name):
    text = "\n".join(map(source, cells(read(name), "markdown")))
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    assert targets
    assert [t for t in targets if "://" not in t and not (ROOT / "docs" / t).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_functions_take_what_they_are_given(name):
    """A setting that has another name now is found without minutes of work."""
    code = "\n".join(map(source, cells(read(name), "code")))
    called = set()
    for node in ast.walk(ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE))):
        function = node.func.id if isinstance(node, ast.Call) and hasattr(node.func, "id") else ""
        if hasattr(semantic_aug, function):
            taken = inspect.signature(getattr(semantic_aug, function)).parameters
            assert {each.arg for each in node.keywords if each.arg} <= taken.keys()
            called.add(function)
    assert called >= {"Run", "preview"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name):
    import nbformat
    from notebooks import executed

    notebook = executed(ROOT / f"docs/{name}.ipynb")
    nbformat.validate(notebook)
    check_outputs(name, json.loads(nbformat.writes(notebook)))
    said = "".join(each.get("text", "") for each in outputs(notebook))
    if name == "quickstart":
        assert "36 words" in said and said.count("96 images") == 3
    else:
        assert "60 photos of 12 classes: nothing is wrong" in said
        assert "60 masks are used" in said and "are right" in said
