"""Run the notebooks of docs/ from an empty folder, and keep their outputs in them.

python scripts/notebooks.py
python scripts/notebooks.py docs/quickstart.ipynb
"""

import argparse
import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 3600  # seconds for a cell; a quiet machine needs a hundred
QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
ON_CPU = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def executed(path: Path) -> nbformat.NotebookNode:
    """A notebook with the outputs of a run on the CPU, without progress bars.

    It runs in a new folder with a link to sample/, so that there is no earlier output/.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell has failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as name:
        docs = Path(name) / "docs"
        docs.mkdir()
        (docs.parent / "sample").symlink_to(ROOT / "sample")
        client = NotebookClient(
            notebook,
            timeout=PATIENCE,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(docs)}},
        )
        client.execute(env={**os.environ, **QUIET, **ON_CPU, "PYTHONPATH": str(ROOT)})
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/jpeg" in output.get("data", {}):
                output.data.pop("image/png", None)  # the same picture, much larger
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    for path in parser.parse_args().notebooks or sorted((ROOT / "docs").glob("*.ipynb")):
        notebook = executed(path)
        nbformat.write(notebook, path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
