"""Compare the outputs of the same commands in two folders: every byte, except parts listed here.

    python scripts/compare_outputs.py OLD NEW [--same NAME TEXT TEXT]...

Names each file that differs, with its differing keys, columns, tensors or lines; then ends with
status 1. `--same` takes texts that mean the same, such as two revisions of git.
compare_revisions.sh makes the two folders.
"""

import argparse
import csv
import difflib
import fnmatch
import hashlib
import io
import json
import re
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Ignored: the values of these keys, or columns, of these files. The presence of a key, and the kind
# of its value (number, text, nothing), are compared.
LEFT_ASIDE = {
    "*/timing.json": ("seconds",),
    "*/timing/*.jsonl": ("seconds", "finished"),
    "*/processes/*.json": ("host", "pid", "seconds"),
    "*/results/*/summary.csv": (
        "fine_tune_seconds", "generate_seconds", "train_seconds", "gain_per_minute",
    ),
    "*/report/*.html": ("seconds",),
}  # fmt: skip
# The count of a killed process depends on the time of its last report.
LEFT_ASIDE_OF_KILLED = ("images", "counted")
# Parts of file names: time, host and process.
NAMES = {
    "*.tmp": (r"\.\d+\.[^/]+-\d+\.tmp$", r".NUMBER.HOST-PID.tmp"),
    "*/processes/*.json": (r"/\d+\.(\w+)\.[^/]+-\d+\.json$", r"/TIME.\1.HOST-PID.json"),
    "*/records/*.jsonl": (r"/(\w+)\.\d+\.(\w+)\.\d+\.jsonl$", r"/\1.TIME.\2.PID.jsonl"),
    "*/timing/*.jsonl": (r"/[^/]+-\d+\.jsonl$", r"/HOST-PID.jsonl"),
    "*/events.out.tfevents.*": (r"\.tfevents\..*$", r".tfevents.TIME.HOST.PID"),
}
# Several such files may then have the same name: their lines are compared as lines of a single
# file, in this order. So it does not matter at which line a process was killed.
IN_ORDER_OF = {"*/records/*.jsonl": None, "*/timing/*.jsonl": "finished"}
# Parts of the commands' messages.
SAID = (
    (r"\bprocess \d+ on [\w.-]+", "process PID on HOST"),
    (r"\(\d+(\.\d+)? s\)", "(SECONDS s)"),
    (r"[\d.]+ [kMGT]?B used, [\d.]+ [kMGT]?B free", "SIZE used, SIZE free"),
)
# Progress bars: only full bars count, because time decides how often they move.
BAR = re.compile(r"^(?P<what>.*?)\s*(?P<percent>\d+)%\|[^|]*\|\s*(?P<count>\S+) \[.*\]\s*$")

SHOWN = 10  # keys of a file, or lines of a text, that are named


@dataclass(frozen=True)
class Side:
    """One of the two folders.

    Attributes:
        same: replacements of texts that mean the same on both sides.
    """

    folder: Path
    same: Mapping[str, str]

    def plain(self, text: str) -> str:
        """`text` without the differences between the two sides."""
        for found, name in sorted(self.same.items(), key=lambda pair: -len(pair[0])):
            text = text.replace(found, name)
        return text

    def files(self) -> dict[str, list[Path]]:
        """All files and links by their names on both sides; oldest first."""
        found = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if "__pycache__" not in path.parts and (path.is_symlink() or not path.is_dir()):
                name = "/" + path.relative_to(self.folder).as_posix()
                found[self.plain(matching(NAMES, name, re.sub))[1:]].append(path)
        return found


def matching(rules: Mapping, name: str, change) -> str:
    """`name`, changed by the first rule that fits."""
    for pattern, (before, after) in rules.items():
        if fnmatch.fnmatchcase(name, pattern):
            return change(before, after, name)
    return name


# --- contents --------------------------------------------------------------------------------


@dataclass
class Content:
    """What is compared of a file.

    Attributes:
        whole: the file without ignored parts. Two files are equal if this is equal.
        parts: the same by keys, to say where two files differ.
    """

    whole: object
    parts: Mapping[str, object]


def content_of(name: str, paths: Sequence[Path], side: Side) -> Content:
    """The compared content of the file with this name on both sides.

    Raises:
        Exception: the file is damaged.
    """
    aside = next((k for p, k in LEFT_ASIDE.items() if fnmatch.fnmatchcase("/" + name, p)), ())
    suffix = ".tfevents" if ".tfevents." in name else Path(name).suffix
    if any(path.is_symlink() for path in paths):
        links = side.plain(" ".join(str(path.readlink()) for path in paths))
        return Content(links, {"target of the link": links})
    data = [path.read_bytes() for path in paths]
    if suffix in READERS_OF_BYTES:
        return READERS_OF_BYTES[suffix](b"".join(data), side)
    try:
        texts = [side.plain(each.decode()) for each in data]
    except UnicodeDecodeError:
        return of_bytes(b"".join(data), side)
    return READERS_OF_TEXT.get(suffix, of_text)(joined(name, texts), aside)


def joined(name: str, texts: Sequence[str]) -> str:
    key = next((k for p, k in IN_ORDER_OF.items() if fnmatch.fnmatchcase("/" + name, p)), None)
    text = "".join(texts)
    if key is None:
        return text
    return "".join(sorted(text.splitlines(keepends=True), key=lambda line: json.loads(line)[key]))


def kind(value: object) -> str:
    """The text that replaces an ignored value."""
    if value is None or isinstance(value, str):
        return "nothing" if value is None else "a text"
    return "a number" if isinstance(value, int | float) else "a list or an object"


def without(text: str, aside: Iterable[str]) -> str:
    """JSON text in which only the values of some keys are replaced."""

    def masked(match: re.Match) -> str:
        return f"{match[1]}<{kind(json.loads(match[2]))}>"

    for key in aside:
        value = r'"(?:[^"\\]|\\.)*"|-?[\d.][\w.+-]*|null|true|false|NaN|-?Infinity'
        text = re.sub(rf"({re.escape(json.dumps(key))}\s*:\s*)({value})", masked, text)
    return text


def flat(value: object, aside: Iterable[str] = (), key: str = "") -> dict[str, object]:
    """The values in JSON by keys such as `settings.edits.0.aug`; objects say the order of keys."""
    if isinstance(value, dict):
        found: dict[str, object] = {f"{key} (order of keys)".strip(): list(value)}
        for name, each in value.items():
            each = f"<{kind(each)}>" if name in aside else each
            found |= flat(each, aside, f"{key}.{name}".removeprefix("."))
        return found
    if isinstance(value, list) and any(isinstance(each, dict | list) for each in value):
        found = {f"{key} (length)".strip(): len(value)}
        for number, each in enumerate(value):
            found |= flat(each, aside, f"{key}.{number}".removeprefix("."))
        return found
    return {key: value}


def of_json(text: str, aside: Sequence[str]) -> Content:
    value = json.loads(text)
    if isinstance(value, dict) and {"pid", "state"} <= value.keys() and value["state"] == "running":
        aside = (*aside, *LEFT_ASIDE_OF_KILLED)
    return Content(without(text, aside), flat(value, aside))


def of_lines(text: str, aside: Sequence[str]) -> Content:
    lines = text.splitlines()
    parts: dict[str, object] = {"(number of lines)": len(lines)}
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = line  # torn
        for key, each in flat(value, aside).items():
            parts[f"{key}, line {number}"] = each
    return Content(without(text, aside), parts)


def of_csv(text: str, aside: Sequence[str]) -> Content:
    lines = text.splitlines(keepends=True)
    rows = list(csv.reader(io.StringIO(text)))
    heads = rows[0] if rows else []
    parts: dict[str, object] = {"(columns)": heads, "(number of rows)": len(rows)}
    for number, row in enumerate(rows[1:], 2):
        for column, value in enumerate(row):
            head = heads[column] if column < len(heads) else f"column {column + 1}"
            masked = f"<{'a number' if value else 'nothing'}>" if head in aside else value
            parts[f"{head}, line {number}"] = masked
    if not set(aside) & set(heads):
        return Content(text, parts)
    field, places = (
        r'"(?:[^"]|"")*"|[^,\r\n"]*',
        [heads.index(name) for name in {*aside} & {*heads}],
    )
    for number, line in enumerate(lines[1:], 1):
        fields = re.findall(rf"((?:{field})(?:,|\r?\n|$))", line)
        for place in places:
            value = fields[place].rstrip(",\r\n")
            rest = fields[place][len(value) :]
            fields[place] = f"<{'a number' if value else 'nothing'}>{rest}"
        lines[number] = "".join(fields)
    return Content("".join(lines), parts)


def of_html(text: str, aside: Sequence[str]) -> Content:
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)
    parts: dict[str, object] = {}
    page, whole = text, text
    if data:
        parts = {f"data {key}": each for key, each in flat(json.loads(data[1]), aside).items()}
        page = text[: data.start(1)] + text[data.end(1) :]
        whole = page + without(data[1], aside)
    parts |= {f"line {number}": line for number, line in enumerate(page.splitlines(), 1)}
    return Content(whole, parts)


def of_text(text: str, aside: Sequence[str]) -> Content:
    lines: list[str] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        pieces = [piece.rstrip() for piece in re.split(r"[\r\n]", line)]
        if len(pieces) <= 2:
            pieces = [line.removesuffix("\n")]
        else:  # blanks among bars mark a removed bar
            pieces = [piece for piece in pieces if piece]
        for piece in pieces:
            bar = BAR.match(piece)
            said = f"{bar['what']} {bar['count']}" if bar else piece
            if bar and (bar["percent"] != "100" or said in lines[-1:]):
                continue
            for pattern, name in SAID:
                said = re.sub(pattern, name, said)
            lines.append(said)
    return Content(lines, {"lines": lines})


def of_safetensors(data: bytes, side: Side) -> Content:
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(side.plain(data[8 : 8 + length].decode()))
    tensors = data[8 + length :]
    # A hash table of its library decides the order in which metadata is written.
    metadata = dict(sorted(header.pop("__metadata__", {}).items()))
    parts: dict[str, object] = {"(order of tensors)": list(header), "(metadata)": list(metadata)}
    for key, text in metadata.items():
        try:
            parts |= flat(json.loads(text), key=f"metadata {key}")
        except ValueError:
            parts[f"metadata {key}"] = text
    for key, each in header.items():
        begin, end = each["data_offsets"]
        parts[f"tensor {key}"] = [each["dtype"], each["shape"], digest(tensors[begin:end])]
    return Content((metadata, list(header.items()), tensors), parts)


def of_checkpoint(data: bytes, side: Side) -> Content:
    import torch

    state = torch.load(io.BytesIO(data[32:]), weights_only=True)  # after the sha256

    def plain(value):
        if isinstance(value, torch.Tensor):
            raw = value.contiguous().view(torch.uint8) if value.dim() else value.reshape(1)
            return [str(value.dtype), list(value.shape), digest(raw.numpy().tobytes())]
        if isinstance(value, Mapping):
            return {str(key): plain(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        return side.plain(value) if isinstance(value, str) else value

    parts = flat(plain(state))
    parts |= flat(json.loads(parts.pop("settings")), key="settings")
    return Content(parts, parts)


def of_events(data: bytes, side: Side) -> Content:
    from tensorboard.compat.proto.event_pb2 import Event

    parts: dict[str, object] = {}
    while data:
        length = struct.unpack("<Q", data[:8])[0]
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        event.wall_time = 0
        tags = ", ".join(value.tag for value in event.summary.value) or event.WhichOneof("what")
        parts[f"event {len(parts)}, step {event.step}, {tags}"] = digest(event.SerializeToString())
    return Content(parts, parts)


def of_png(data: bytes, side: Side) -> Content:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        parts = {
            "size": image.size,
            "mode": image.mode,
            **{f"text {k}": v for k, v in image.info.items()},
        }
        parts["pixels"] = digest(image.tobytes())
    return Content(data, parts)


def of_bytes(data: bytes, side: Side) -> Content:
    return Content(data, {"length": len(data), "sha256": digest(data)})


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


READERS_OF_TEXT = {".json": of_json, ".jsonl": of_lines, ".csv": of_csv, ".html": of_html}
READERS_OF_BYTES = {
    ".safetensors": of_safetensors, ".pt": of_checkpoint, ".tfevents": of_events, ".png": of_png,
}  # fmt: skip


# --- differences -----------------------------------------------------------------------------


def differences(old: Side, new: Side) -> tuple[list[str], int]:
    """Lines with the differences, and the number of compared files."""
    before, after = old.files(), new.files()
    lines = [f"{name}: only in OLD" for name in sorted(before.keys() - after.keys())]
    lines += [f"{name}: only in NEW" for name in sorted(after.keys() - before.keys())]
    both = sorted(before.keys() & after.keys())
    for name in both:
        found = differences_of(name, before[name], after[name], old, new)
        command = (new.folder / name).with_suffix(".command")
        if found and command.is_file():
            found.insert(0, f"{name}: of {shortened(command.read_text(encoding='utf-8').strip())}")
        lines += found
    return lines, len(both)


def differences_of(name, before: Sequence[Path], after: Sequence[Path], old, new) -> list[str]:
    """Lines with the differences in the file of this name."""
    single = not any(fnmatch.fnmatchcase("/" + name, pattern) for pattern in IN_ORDER_OF)
    if single and len(before) != len(after):
        return [f"{name}: {len(before)} of them in OLD, {len(after)} in NEW"]
    pairs = [([a], [b]) for a, b in zip(before, after)] if single else [(before, after)]
    lines = []
    for pair in pairs:
        contents = []
        for paths, side in zip(pair, (old, new)):
            try:
                contents.append(content_of(name, paths, side))
            except Exception as error:  # a damaged file may raise any error
                data = b"".join(path.read_bytes() for path in paths)
                contents.append(Content(data, {f"(damaged: {error})": digest(data)}))
        lines += [f"{name}: {line}" for line in named(*contents)]
    return lines


def named(old: Content, new: Content) -> list[str]:
    """The differences between two contents, by keys."""
    if old.whole == new.whole:
        return []
    if "lines" in old.parts and "lines" in new.parts:
        changed = difflib.unified_diff(old.parts["lines"], new.parts["lines"], n=0, lineterm="")
        lines = [line for line in list(changed)[2:] if not line.startswith("@@")]
        lines = [("OLD " if line[0] == "-" else "NEW ") + line[1:] for line in lines]
        return [*lines[: 2 * SHOWN], *(["and more"] if len(lines) > 2 * SHOWN else [])]
    by_key: dict[str, list] = defaultdict(list)  # lines of a table that differ in one column: once
    for part in dict.fromkeys([*old.parts, *new.parts]):
        before, after = (in_words(side.parts, part) for side in (old, new))
        if before != after:
            key, _, line = part.partition(", line ")
            by_key[key].append((line, shortened(before), shortened(after)))
    found = []
    for key, cases in by_key.items():
        (line, before, after), more = cases[0], len(cases) - 1
        where = f" in line {line}" if line else ""
        also = f", and {more} more" if more else ""
        found.append(f"{key}{where}: OLD {before}, NEW {after}{also}")
    if not found:
        found = ["only the form differs, such as blanks, quotes or the compression"]
    return [
        *found[:SHOWN],
        *([f"and {len(found) - SHOWN} more keys"] if len(found) > SHOWN else []),
    ]


def in_words(parts: Mapping[str, object], part: str) -> str:
    if part not in parts:
        return "absent"
    return json.dumps(
        parts[part], ensure_ascii=False, default=str
    )  # in which 1, 1.0 and true differ


def shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--same", nargs="+", action="append", default=[], metavar="NAME",
                        help="NAME TEXT TEXT: two texts and their common name")  # fmt: skip
    args = parser.parse_args(argv)
    for folder in (args.old, args.new):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    same = {text: f"<{name}>" for name, *texts in args.same for text in texts}
    sides = [Side(each, same | {str(each.resolve()): "<folder>"}) for each in (args.old, args.new)]
    lines, count = differences(*sides)
    for line in lines:
        print(line)
    names = {line.split(": ", 1)[0] for line in lines}
    print(f"{count} files compared, {len(names)} differ" if lines else f"{count} files are equal")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
