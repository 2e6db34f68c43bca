"""The sentences in which a word is trained: neutral contexts with `{}` for the word.

To add a set, add a tuple here and a line in TEMPLATES.
"""

from pathlib import Path

from semantic_aug import UserError

# The published method's contexts for an object and for a style (arXiv 2208.01618, section 4).
OBJECT = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
STYLE = (
    "a painting in the style of {}",
    "a rendering in the style of {}",
    "a cropped painting in the style of {}",
    "the painting in the style of {}",
    "a clean painting in the style of {}",
    "a dirty painting in the style of {}",
    "a dark painting in the style of {}",
    "a picture in the style of {}",
    "a cool painting in the style of {}",
    "a close-up painting in the style of {}",
    "a bright painting in the style of {}",
    "a good painting in the style of {}",
    "a rendition in the style of {}",
    "a nice painting in the style of {}",
    "a small painting in the style of {}",
    "a weird painting in the style of {}",
    "a large painting in the style of {}",
)

MVIP = (
    "a photo of a {}",
    "a photo of the {}",
    "a photo of a single {}",
    "a close-up photo of a {}",
    "a cropped photo of the {}",
    "a photo of a machine part, a {}",
    "an industrial photo of a {}",
    "a product photo of a {}",
    "a photo of a {} from above",
    "a photo of a {} from the side",
    "a photo of the {} at an angle",
    "a photo of a {} on a turntable",
    "a photo of a {} on a workbench",
    "a photo of a {} on a plain background",
    "an inspection photo of the {}",
    "a bright photo of the {}",
    "a dark photo of the {}",
    "a photo of a new {}",
    "a photo of a worn {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a photo of a {} made of metal",
)

TEMPLATES = {"object": OBJECT, "style": STYLE, "mvip": MVIP}


def load_templates(name: str) -> tuple[str, ...]:
    """A set of TEMPLATES by its name, or the lines of a text file without blank lines.

    Raises:
        UserError: there is no such set or file, or a line does not have `{}` exactly once.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"--templates: got {name!r}, expected {', '.join(TEMPLATES)} or a text file of one "
            f"sentence per line ({reason})"
        ) from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    for number, line in lines:
        if line.count("{}") != 1:
            raise UserError(
                f"--templates: line {number} of {name} is {line!r}, expected a sentence that holds "
                '{} once, such as "a photo of a {}"'
            )
    if not lines:
        raise UserError(f'--templates: {name} is empty, expected lines such as "a photo of a {{}}"')
    return tuple(line for _, line in lines)
