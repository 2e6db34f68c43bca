"""Contact sheets: pictures in rows and columns, with names."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 2  # pixels between pictures


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]],
    headings: Sequence[str],
    cell: int = 96,
    letters: int | None = None,
) -> Image.Image:
    """Pictures in rows and groups of columns, with names at the left and above.

    Args:
        rows: a name, of one or several lines, and a list of pictures for each heading. Short lists
            leave white cells.
        headings: a name per group, of one or several lines.
        cell: side of a picture in pixels; wide and tall pictures keep their proportions.
        letters: size of letters in pixels (default: a seventh of `cell`).
    """
    font = ImageFont.load_default(size=letters or max(10, cell // 7))
    line = int(font.getbbox("Ag")[3]) + 6
    above = line * max(heading.count("\n") + 1 for heading in headings)
    names = [[_shortened(text, font, 3 * cell) for text in name.split("\n")] for name, _ in rows]
    margin = max(int(font.getlength(text)) for lines in names for text in lines) + 8
    columns = [max(1, *map(len, group)) for group in zip(*(groups for _, groups in rows))]
    widths = [count * (cell + GAP) + 6 for count in columns]
    sheet = Image.new("RGB", (margin + sum(widths), above + len(rows) * (cell + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    left = margin
    for heading, width in zip(headings, widths):
        for number, text in enumerate(heading.split("\n")):
            draw.text((left, 2 + number * line), _shortened(text, font, width), "black", font)
        left += width
    for number, (lines, (_, groups)) in enumerate(zip(names, rows)):
        top = above + number * (cell + GAP)
        first = top + cell // 2 - line * len(lines) // 2
        for below, text in enumerate(lines):
            draw.text((4, first + below * line), text, "black", font)
        left = margin
        for group, width in zip(groups, widths):
            for column, picture in enumerate(group):
                fitted = ImageOps.contain(picture.convert("RGB"), (cell, cell))
                x = left + column * (cell + GAP) + (cell - fitted.width) // 2
                sheet.paste(fitted, (x, top + (cell - fitted.height) // 2))
            left += width
    return sheet


def _shortened(text: str, font, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text
