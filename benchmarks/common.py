"""Shared code of the benchmarks: sides run alternately, each in its own process; medians.

A side is a function that returns a dictionary with `seconds` and other results. Its peak memory
is added.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_MARK = "SIDE "


def run_side(script: str, name: str, arguments: list[str]) -> dict:
    """Run `script --side name arguments` in a new process; return the side's result."""
    command = [sys.executable, script, "--side", name, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        raise SystemExit(f"{name} failed with status {done.returncode}: {' '.join(command)}")
    return json.loads(lines[-1].removeprefix(_MARK))


def report_side(found: dict) -> None:
    """Print what a side found, with its peak memory in MB, for `run_side`."""
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(_MARK + json.dumps(found), flush=True)


def compare(script: str, sides: tuple[str, ...], rounds: int, arguments: list[str]) -> dict:
    """Run sides in turns, such as `plain` and `ours`; medians, and the ratio of the first two.

    Returns:
        ratio, plain_s, ours_s, plain_peak_mb, ours_peak_mb, and `rounds`: what each side returned.
    """
    runs = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):  # the second side runs warm
            found = run_side(script, side, arguments)
            runs[side].append(found)
            print(f"round {number + 1}: {side}: {found['seconds']:.2f} s", flush=True)
    seconds = [statistics.median(run["seconds"] for run in runs[side]) for side in sides]
    memory = [statistics.median(run["peak_mb"] for run in runs[side]) for side in sides]
    return {
        "ratio": round(seconds[0] / seconds[1], 2),
        **{f"{side}_s": round(median, 2) for side, median in zip(sides, seconds)},
        **{f"{side}_peak_mb": median for side, median in zip(sides, memory)},
        "rounds": runs,
    }


def threads() -> int:
    """The number of this machine's cores, for torch; call it before torch is imported."""
    count = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    return count
