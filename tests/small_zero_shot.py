"""Small zero-shot detectors of `transformers` with random weights and tokenisers of a few words, written to disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "car", "person", "walking", "traffic", "sign", "tree")
_SWIN: dict[str, Any] = {
    "model_type": "swin", "image_size": 64, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1, 1],
    "num_heads": [1, 1, 2, 2], "window_size": 2, "out_features": ["stage2", "stage3", "stage4"],
}  # fmt: skip


def _words() -> Any:
    """BERT's tokeniser, of these words alone."""
    from transformers import BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    return BertTokenizer(vocab={word: place for place, word in enumerate(vocabulary)})


def _pieces() -> Any:
    """CLIP's tokeniser, of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: place for place, piece in enumerate(vocabulary)}, merges=[], model_max_length=16)


def _grounding(family: str) -> tuple[Any, Any]:
    from transformers import AutoConfig, GroundingDinoImageProcessor, GroundingDinoProcessor

    words = _words()
    config = AutoConfig.for_model(
        family, backbone_config=_SWIN, d_model=64, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12, max_text_len=32,
        text_config={
            "model_type": "bert", "vocab_size": len(words), "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32,
        },
    )  # fmt: skip
    images = GroundingDinoImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return config, GroundingDinoProcessor(images, words)


_CLIP: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _owl() -> tuple[Any, Any]:
    from transformers import Owlv2Config, Owlv2ImageProcessor, Owlv2Processor

    pieces = _pieces()
    config = Owlv2Config(
        text_config={**_CLIP, "vocab_size": len(pieces), "max_position_embeddings": 16, "pad_token_id": 0,
                     "bos_token_id": len(pieces) - 2, "eos_token_id": len(pieces) - 1},
        vision_config={**_CLIP, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )  # fmt: skip
    return config, Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), pieces)


def _omdet() -> tuple[Any, Any]:
    from transformers import DetrImageProcessor, OmDetTurboConfig, OmDetTurboProcessor

    pieces = _pieces()
    config = OmDetTurboConfig(
        text_config={**_CLIP, "hidden_size": 24, "model_type": "clip_text_model", "vocab_size": len(pieces),
                     "max_position_embeddings": 77, "projection_dim": 16, "eos_token_id": len(pieces) - 1},
        backbone_config={**_SWIN, "model_type": "swin", "out_indices": [2, 3, 4]},
        use_timm_backbone=False, apply_layernorm_after_vision_backbone=False, image_size=64,
        text_projection_in_dim=24, text_projection_out_dim=24, class_embed_dim=24, encoder_hidden_dim=16,
        decoder_hidden_dim=16, d_model=16, vision_features_channels=[16, 16, 16], decoder_num_heads=2,
        encoder_attention_heads=2, encoder_dim_feedforward=16, decoder_dim_feedforward=16, decoder_num_layers=1,
        encoder_in_channels=[16, 32, 64], encoder_layers=1, num_queries=12, task_encoder_hidden_dim=16,
        fuse_hidden_dim=16, backbone_feat_channels=[16, 16, 16], num_projection_layers=1, hidden_expansion=1,
    )  # fmt: skip
    images = DetrImageProcessor(size={"height": 64, "width": 64}, do_pad=False)
    return config, OmDetTurboProcessor(images, pieces)


def _sam() -> tuple[Any, Any]:
    from transformers import Sam3Config, Sam3ImageProcessor, Sam3Processor

    pieces = _pieces()
    part = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = Sam3Config(
        vision_config={
            "backbone_config": {**part, "model_type": "sam3_vit_model", "num_hidden_layers": 2, "image_size": 112,
                                "patch_size": 14, "window_size": 4, "global_attn_indexes": [1],
                                "pretrain_image_size": 56},
            "fpn_hidden_size": 16, "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        text_config={**_CLIP, "model_type": "clip_text_model", "vocab_size": len(pieces), "projection_dim": 16,
                     "max_position_embeddings": 32, "eos_token_id": len(pieces) - 1},
        geometry_encoder_config={**part, "num_layers": 1}, detr_encoder_config={**part, "num_layers": 1},
        detr_decoder_config={**part, "num_layers": 1, "num_queries": 12},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
    )  # fmt: skip
    return config, Sam3Processor(Sam3ImageProcessor(size={"height": 112, "width": 112}), pieces)


MADE: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "grounding-dino": lambda: _grounding("grounding-dino"),
    "mm-grounding-dino": lambda: _grounding("mm-grounding-dino"),
    "owlv2": _owl,
    "omdet-turbo": _omdet,
    "sam3": _sam,
}
"""Family, as `config.json` calls it -> its configuration and processor."""


def write(family: str, folder: Path, seed: int = 0) -> Path:
    """A checkpoint folder with such a model."""
    from transformers import AutoModelForZeroShotObjectDetection, Sam3Model

    config, processor = MADE[family]()
    torch.manual_seed(seed)
    model = Sam3Model(config) if family == "sam3" else AutoModelForZeroShotObjectDetection.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_embed" in name and name.endswith("bias"):
                # An untrained one takes everything for background.
                parameter.zero_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
