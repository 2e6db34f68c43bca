"""What lies in the repository: it can be copied in one go, and documents find their pictures."""

import re
import subprocess

import pytest
from conftest import ROOT

MOST = 46 * 2**20  # with a few wheels this travels to machines without a network


def test_tracked_files_are_small_together():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no git")
    if listed.returncode:
        pytest.skip("no checkout of git")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    assert len(sizes) > 100
    largest = sorted(sizes, key=sizes.get)[-5:]
    assert sum(sizes.values()) < MOST, f"the largest: {[str(path) for path in largest]}"


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))],
                         ids=lambda path: path.name)  # fmt: skip
def test_links_lead_to_files(path):
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    absent = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert absent == []
