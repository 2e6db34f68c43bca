"""Small models that find objects, with random weights, saved as the hub has them."""

import json
from pathlib import Path

import torch
from conftest import build_tokenizer

SQUARE = {"height": 32, "width": 32}


def text_config(tokenizer) -> dict:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def saved(folder: Path, model, processor: dict, tokenizer=None) -> str:
    """A model's folder with the files of the published ones: processors in their former format."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def random_weights(config, cls):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(config)


def build_clipseg(folder: Path) -> str:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    tokenizer = build_tokenizer()
    config = CLIPSegConfig(
        text_config=text_config(tokenizer), vision_config=VISION, projection_dim=24, reduce_dim=16,
        extract_layers=[0, 1, 2], decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    processor = {"image_processor_type": "ViTImageProcessor", "processor_class":
                 "CLIPSegProcessor", "size": SQUARE, "resample": 2}  # fmt: skip
    return saved(folder, random_weights(config, CLIPSegForImageSegmentation), processor, tokenizer)


def build_owlv2(folder: Path) -> str:
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    tokenizer = build_tokenizer()
    text = text_config(tokenizer) | {"max_position_embeddings": 16}
    config = Owlv2Config(text_config=text, vision_config=VISION, projection_dim=32)
    processor = {"image_processor_type": "Owlv2ImageProcessor", "processor_class":
                 "Owlv2Processor", "size": SQUARE}  # fmt: skip
    return saved(folder, random_weights(config, Owlv2ForObjectDetection), processor, tokenizer)


def build_grounding_dino(folder: Path) -> str:
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        SwinConfig,
    )

    folder.mkdir(exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "a", "cat", "stop", "sign", "toy",
             "train"]  # fmt: skip
    (folder / "words.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(folder / "words.txt"))
    text = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    backbone = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[1, 1, 2, 2],
        window_size=2, out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, num_queries=5,
        decoder_attention_heads=2, max_text_len=16, num_feature_levels=4,
    )  # fmt: skip
    processor = {"image_processor_type": "GroundingDinoImageProcessor", "processor_class":
                 "GroundingDinoProcessor", "size": {"shortest_edge": 96,
                                                    "longest_edge": 192}}  # fmt: skip
    model = random_weights(config, GroundingDinoForObjectDetection)
    return saved(folder, model, processor, tokenizer)


def build_sam(folder: Path) -> str:
    from transformers import (
        SamConfig,
        SamMaskDecoderConfig,
        SamModel,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    vision = SamVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        output_channels=16, mlp_dim=32, window_size=4, global_attn_indexes=[1],
    )  # fmt: skip
    vision.num_pos_feats = 8
    prompt = SamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
    )
    mask = SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=mask.to_dict(),
    )
    processor = {"image_processor_type": "SamImageProcessor", "processor_class": "SamProcessor",
                 "size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}  # fmt: skip
    return saved(folder, random_weights(config, SamModel), processor)
