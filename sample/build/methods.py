"""Draw the pictures of docs/methods.md from the images that its commands have made.

    python sample/build/methods.py --output output --out docs/methods

Run the commands of that page first. A picture shows one or two of their sets, a photo in each row.
"""

import argparse
import json
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from semantic_aug.images.sheet import contact_sheet

# Of each picture: the sets that it shows, what stands above them, how many variants of a photo.
PICTURES = {
    "whole": [("half", "strength 0.5", 3), ("whole", "strength 1.0", 3)],
    "words": [("word-half", "strength 0.5", 3), ("word", "strength 1.0", 3)],
    "lora": [("without-lora", "word", 3), ("with-lora", "word and LoRA", 3)],
    "object": [("object", "the object alone, strength 0.75", 6)],
    "background": [("background", "new surroundings", 6)],
    "paste": [("paste", "on other photos' places", 6)],
    "generated": [("from-photos", "from photos", 3), ("from-prompts", "from prompts", 3)],
    "layout": [("recoloured", "colour", 3), ("moved", "colour, size, turn and shift", 3)],
    "several": [("either", "one of two", 3), ("both", "one after the other", 3)],
}
PHOTOS = Path(__file__).resolve().parents[1] / "mvip"


def main(argv=None):
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/methods.md.")
    parser.add_argument("--output", default="output", help="where the commands have written")
    parser.add_argument("--out", default="docs/methods")
    args = parser.parse_args(argv)
    output, out = Path(args.output), Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, sets in PICTURES.items():
        found = [variants(output, aug_name) for aug_name, _, _ in sets]
        rows = []
        for photo in sorted(found[0]):
            kind = photo.relative_to(PHOTOS).parts[0].replace("_", " ")
            cells = [of[photo][:count] for of, (_, _, count) in zip(found, sets)]
            rows.append((kind, [[Image.open(photo)], *cells]))
        save(contact_sheet(rows, ["photo", *(title for _, title, _ in sets)], 104, 14), out, name)
    rows = []
    for aug_name, title, _ in PICTURES["generated"]:
        (folder,) = output.glob(f"methods-*/places/{aug_name}/seed=*")
        rows.append((title, [[Image.open(path) for path in sorted(folder.glob("*.png"))[:7]]]))
    save(contact_sheet(rows, ["places"], 104, 14), out, "places")
    (preview,) = output.glob("methods-new/report/preview_seed=0_ex=1.png")
    sheet = Image.open(preview)
    save(sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.BOX), out, "preview")


def variants(output: Path, aug_name: str) -> dict[Path, list[Image.Image]]:
    """The images of a set by the files of their photos."""
    (folder,) = output.glob(f"methods-*/{aug_name}/seed=*")
    found: dict[Path, list[Image.Image]] = {}
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        image = Image.open(folder / record["file_name"])
        found.setdefault(PHOTOS / record["source"], []).append(image)
    return found


def save(sheet: Image.Image, out: Path, name: str) -> None:
    sheet.save(out / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main()
