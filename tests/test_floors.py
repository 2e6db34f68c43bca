"""The house stands: every module imports from floors below its own, or from its own room."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from conftest import ROOT

# Floor of every room: a folder of semantic_aug/, or a file in it. A file within a room that stands
# elsewhere has a line of its own.
FLOORS = {
    "settings": 0,
    "registry": 1,
    "experiment": 1,
    "cli": 2,
    "generative_augmentation": 2,
    "images": 2,
    "synthesis": 3,
    "diffusion": 3,
    "few_shot_dataset": 4,
    "words": 5,
    "datasets": 5,
    "evaluation": 5,
    "augmentations": 6,
    "gate": 6,
    "report": 6,
    "stages": 7,
    "cluster": 8,
    "commands": 8,
    "report.__main__": 8,
    "chain": 9,
    "status": 9,
    "__main__": 9,
}
FACE = "semantic_aug"  # lies below floor 0: UserError, counted, stable_hash
MAY_IMPORT_DIFFUSERS = ("diffusion", "words", "augmentations")
MAY_LOAD_MODELS = ("diffusion", "evaluation.backbone", "gate")


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / FACE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def is_left_out(node: ast.AST, name: str) -> bool:
    """What only a type checker reads, and what the face loads when somebody asks for it."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return name == FACE and isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def statements(node: ast.AST, name: str):
    """All that stands in a module, in its functions too."""
    for child in ast.iter_child_nodes(node):
        if not is_left_out(child, name):
            yield child
            yield from statements(child, name)


def imports_of(name: str) -> set[str]:
    """What a module imports, wherever it does; a name of this package as the module it lies in."""
    found = set()
    for node in statements(MODULES[name], name):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno} is a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return found


def room_of(name: str) -> str:
    """The line of `FLOORS` that counts for a module."""
    inner = name.removeprefix(f"{FACE}.")
    return inner if inner in FLOORS else inner.partition(".")[0]


def floor_of(name: str) -> int:
    return -1 if name == FACE else FLOORS[room_of(name)]


ROOMS = sorted(MODULES.keys() - {FACE})


def test_every_module_has_a_floor_and_every_floor_a_module():
    without = {name for name in ROOMS if room_of(name) not in FLOORS}
    assert not without, f"{', '.join(without)}: no floor; enter its room in FLOORS in {__file__}"
    assert set(map(room_of, ROOMS)) == FLOORS.keys()


def test_modules_import_from_below_or_from_their_own_room():
    wrong = [
        f"{name} on floor {floor_of(name)} imports {other} on floor {floor_of(other)}"
        for name in MODULES
        for other in sorted(imports_of(name) & MODULES.keys() - {FACE})
        if room_of(other) != room_of(name) and floor_of(other) >= floor_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_no_circle():
    graph = {name: imports_of(name) & MODULES.keys() for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


def test_no_module_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    assert {name: found for name in MODULES if (found := imports_of(name) & scripts)} == {}


def test_few_rooms_know_diffusers():
    importing = {
        room_of(name)
        for name in MODULES
        if any(each.partition(".")[0] == "diffusers" for each in imports_of(name))
    }
    assert importing == set(MAY_IMPORT_DIFFUSERS)


def test_models_are_loaded_in_few_places():
    for name in ROOMS:
        inner = name.removeprefix(f"{FACE}.")
        if inner not in MAY_LOAD_MODELS and room_of(name) not in MAY_LOAD_MODELS:
            called = {n.attr for n in ast.walk(MODULES[name]) if isinstance(n, ast.Attribute)}
            assert "from_pretrained" not in called, f"{name} loads a model"


# --- what users import and type --------------------------------------------------------------


PUBLIC = {
    "semantic_aug": ["UserError"],
    "semantic_aug.few_shot_dataset": [
        "FewShotDataset", "Record", "SPLITS", "IMAGE_SUFFIXES", "read_image", "read_mask",
        "read_size", "binary_mask", "image_to_tensor", "object_box", "open_image", "to_rgb",
    ],
    "semantic_aug.generative_augmentation": ["GenerativeAugmentation", "Edit"],
    "semantic_aug.datasets": ["build_dataset", "DATASETS"],
    "semantic_aug.datasets.coco": ["COCODataset"],
    "semantic_aug.datasets.mvip": ["MVIPDataset"],
    "semantic_aug.datasets.layout": ["split_by_hash"],
    "semantic_aug.augmentations.real_guidance": ["RealGuidance"],
    "semantic_aug.augmentations.textual_inversion": ["TextualInversion"],
    "semantic_aug.augmentations.compose": ["ComposeParallel", "ComposeSequential"],
    "semantic_aug.report.__main__": ["main"],
    "semantic_aug.status": ["main"],
    "semantic_aug.chain": ["main"],
    "semantic_aug.datasets.__main__": ["main"],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_where_users_import_them_from(name):
    module = __import__(name, fromlist=["it"])
    assert [each for each in PUBLIC[name] if not hasattr(module, each)] == []
