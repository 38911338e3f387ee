"""Small detectors of `transformers`' real-time families with random weights, written to disk as published ones are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

SIDE = 64
"""Of the square canvas that they are configured for, pixels."""
QUERIES = 20

_HYBRID: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "d_model": 32,
    "num_queries": QUERIES,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "num_denoising": 8,
}
_RESNET: dict[str, Any] = {
    "model_type": "rt_detr_resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
_HGNET: dict[str, Any] = {
    "model_type": "hgnet_v2",
    "num_channels": 3,
    "embedding_size": 8,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 16, 24, 32],
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 8, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [8, 16, 24, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "out_features": ["stage2", "stage3", "stage4"],
}
_GROUPS: dict[str, Any] = {
    "d_model": 32,
    "num_queries": QUERIES,
    "group_detr": 3,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "decoder_n_points": 2,
    "c2f_num_blocks": 1,
    "dropout": 0.0,
}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SIDE,
}

CONFIGURATIONS: Mapping[str, dict[str, Any]] = {
    "rt_detr": {**_HYBRID, "encoder_in_channels": [16, 24, 32], "backbone_config": _RESNET},
    "rt_detr_v2": {**_HYBRID, "encoder_in_channels": [16, 24, 32], "backbone_config": _RESNET},
    "d_fine": {**_HYBRID, "encoder_in_channels": [16, 24, 32], "backbone_config": _HGNET, "lqe_hidden_dim": 16},
    "deimv2": {**_HYBRID, "encoder_in_channels": [16, 24, 32], "backbone_config": _HGNET, "lqe_hidden_dim": 16},
    "lw_detr": {
        **_GROUPS,
        "projector_scale_factors": [2.0, 0.5],
        "backbone_config": {
            **_VIT,
            "model_type": "lw_detr_vit",
            "pretrain_image_size": SIDE,
            "patch_size": 16,
            "num_windows": 4,
            "window_block_indices": [0, 2],
            "out_indices": [2, 4],
        },
    },
    "rf_detr": {
        **_GROUPS,
        "backbone_config": {
            **_VIT,
            "model_type": "rf_detr_dinov2",
            "patch_size": 8,
            "num_windows": 2,
            "out_indices": [2, 4],
        },
    },
}
"""Family, as `config.json` calls it -> its configuration."""


def model_of(family: str, classes: Sequence[str], seed: int = 0, **options: Any) -> Any:
    """A model of the library's, in evaluation mode, whose scores differ as after training."""
    from transformers import AutoConfig, AutoModelForObjectDetection

    torch.manual_seed(seed)
    names = dict(enumerate(classes))
    labels = {name: index for index, name in names.items()}
    values = {**CONFIGURATIONS[family], **options}
    config = AutoConfig.for_model(family, **values, id2label=names, label2id=labels)
    model = AutoModelForObjectDetection.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scores = "class_embed." in name or "enc_score_head." in name
            if scores and name.endswith("weight"):
                parameter.normal_(std=0.5)
            elif scores and name.endswith("bias"):
                parameter.fill_(-1.0)
        _see_pictures(model)
    return model.eval()


def _see_pictures(model: Any) -> None:
    """Let normalisations know what there is. Without it nothing of a picture arrives behind a few untrained layers,
    every place has the same score, and which of them are chosen is a matter of rounding."""
    norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()
    blocks = torch.rand(8, 3, 8, 8)
    model(torch.nn.functional.interpolate(blocks, size=(SIDE, SIDE), mode="bilinear"))
    for norm in norms:
        norm.momentum = 0.1


def processor_of(family: str) -> Any:
    """The library's image processor for the family."""
    from transformers import DeformableDetrImageProcessor, RTDetrImageProcessor
    from transformers.models.rf_detr.image_processing_rf_detr import RfDetrImageProcessor

    kind = {"lw_detr": DeformableDetrImageProcessor, "rf_detr": RfDetrImageProcessor}.get(family, RTDetrImageProcessor)
    return kind(size={"height": SIDE, "width": SIDE})


def write(family: str, folder: Path, classes: Sequence[str], seed: int = 0) -> Path:
    """A checkpoint folder with such a model."""
    model_of(family, classes, seed).save_pretrained(folder)
    processor_of(family).save_pretrained(folder)
    return folder
