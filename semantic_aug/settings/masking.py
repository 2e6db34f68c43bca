"""The settings of semantic-aug masks."""

from semantic_aug.settings import FRACTION, setting, settings, whole
from semantic_aug.settings.common import BEST_DEVICE, Selection, Sharing

NAMED, SALIENT = "named", "salient"
# The default models: of `named`, one finds the object and one draws its outline.
MASKER_MODELS = {
    NAMED: ("CIDAS/clipseg-rd64-refined", "facebook/sam-vit-base"),
    SALIENT: ("isnet-general-use",),
}


@settings("masker")
class Masker:
    masker: str = setting(
        NAMED,
        "named, salient, or a model; named: the class's name finds the object; salient: "
        "what stands out is the object; a model: folder or hub id of a "
        "semantic-segmentation model of transformers, whose class 0 is the background",
        metavar="named|salient|MODEL",
        result=True,
    )
    masker_models: tuple[str, ...] | None = setting(
        None,
        "models of named or salient (default: by --masker); named: a CLIPSeg, OWL-ViT, "
        "OWLv2 or Grounding DINO and a SAM, or a SAM 3 alone, else "
        "CIDAS/clipseg-rd64-refined facebook/sam-vit-base; salient: a model of rembg, or an "
        "ONNX file, else isnet-general-use",
        metavar="MODEL",
        result=True,
    )
    prompt: str = setting(
        "a {name}", "named: the words that find the object; {name} is its class", result=True
    )
    batch_size: int = setting(4, "photos per batch", check=whole(1))
    device: str | None = setting(None, BEST_DEVICE)


@settings("cleaning")
class Cleaning:
    keep_pieces: bool = setting(
        False, "keep all connected pieces; else only the largest", result=True
    )
    fill_holes: float = setting(
        0.02, "fill holes up to this share of the object's area", check=FRACTION, result=True
    )
    raw_edges: bool = setting(
        False, "keep the model's edges; else the photo refines them", result=True
    )


@settings()
class Masking(Cleaning, Masker, Sharing, Selection):
    """All settings of semantic-aug masks except the settings of its photos."""

    overwrite: bool = setting(
        False, "make all masks again; also masks that a person has painted or corrected", early=True
    )
