"""Photos of the common kinds in a plain folder, without masks and splits, as users have them.

    python sample/build/plain_folder.py photos --photos 4 --seed 0

Each kind has a folder with --photos of its training photos, which the seed chooses.
"""

import argparse
import random
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def plain_folder(folder, photos, seed, masks=None):
    """Write photos/KIND/*.png and, with `masks`, a mask for each below that folder."""
    for kind in sorted(path.name for path in (ROOT / "same_places").iterdir()):
        files = sorted(
            (ROOT / "mvip" / kind / "train_data").rglob("*_rgb.png"), key=lambda p: p.name
        )
        chosen = random.Random(f"{seed} {kind}").sample(files, photos)
        for root, ending in ((folder, ""), *(((masks, "_mask_gen"),) if masks else ())):
            (Path(root) / kind).mkdir(parents=True, exist_ok=True)
            for path in chosen:
                source = path.with_name(f"{path.stem}{ending}.png")
                shutil.copy(source, Path(root) / kind / path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--masks", help="write their masks to this folder too")
    args = parser.parse_args()
    plain_folder(args.folder, args.photos, args.seed, args.masks)
