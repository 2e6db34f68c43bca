"""The settings of semantic-aug masks."""

from semantic_aug.settings import FRACTION, setting, settings, whole
from semantic_aug.settings.common import BEST_DEVICE, Selection, Sharing

NAMED, SALIENT = "named", "salient"
# The models of a way, where none are named: what finds an object, and what draws its outline.
MASKER_MODELS = {
    NAMED: ("CIDAS/clipseg-rd64-refined", "facebook/sam-vit-base"),
    SALIENT: ("isnet-general-use",),
}


@settings("masker")
class Masker:
    masker: str = setting(
        NAMED,
        "named: the class's name finds the object; salient: what stands out; or a folder or hub id "
        "of a semantic-segmentation model of transformers, whose class 0 is ground",
        metavar="named|salient|MODEL",
        result=True,
    )
    masker_models: tuple[str, ...] | None = setting(
        None,
        "named: a CLIPSeg, OWL-ViT, OWLv2 or Grounding DINO and a SAM, or a SAM 3 alone (default "
        "CIDAS/clipseg-rd64-refined facebook/sam-vit-base); salient: a model of rembg, or an ONNX "
        "file (default isnet-general-use)",
        metavar="MODEL",
        result=True,
    )
    prompt: str = setting(
        "a {name}", "named: the words that find the object, {name} being its class's", result=True
    )
    batch_size: int = setting(4, "photos at once", check=whole(1))
    device: str | None = setting(None, BEST_DEVICE)


@settings("cleaning")
class Cleaning:
    keep_pieces: bool = setting(
        False, "keep all connected pieces, not the largest alone", result=True
    )
    fill_holes: float = setting(
        0.02, "fill holes up to this share of the object's area", check=FRACTION, result=True
    )
    raw_edges: bool = setting(
        False, "leave edges as the model draws them, not refined by the photo", result=True
    )


@settings()
class Masking(Cleaning, Masker, Sharing, Selection):
    """All settings of semantic-aug masks but those of its photos."""

    overwrite: bool = setting(
        False, "make all masks again, also those that a person has painted or corrected", early=True
    )
