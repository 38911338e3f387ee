"""What the peers' command lines do not do, by their Python interfaces.

RF-DETR and LibreYOLO in environments of their own, torchvision's SSDLite in the project's:

    runs/peers/env-rfdetr/bin/python benchmarks/peers_foreign.py rfdetr train '{"data": "...", ...}'

peers.py starts it. Each function stands alone and imports its peer when it is called; nothing of acclimate is needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def rfdetr_graph(out: str, classes: int, side: int) -> None:
    """An ONNX file of a network with random weights, written into the folder `out`."""
    _rfdetr(classes, side, None).export(output_dir=out, shape=(side, side), verbose=False)


def rfdetr_train(data: str, out: str, classes: int, side: int, epochs: int) -> None:
    """Train with the defaults of `RFDETRNano.train`, from random weights."""
    _rfdetr(classes, side, None).train(
        dataset_dir=data, output_dir=out, epochs=epochs, num_workers=0, tensorboard=False, run_test=False
    )


def rfdetr_boxes(out: str, images: Sequence[str], file: str, classes: int, side: int) -> None:
    """Boxes of images as JSON: path -> [x1, y1, x2, y2, class, score]."""
    detector = _rfdetr(classes, side, str(Path(out) / "checkpoint_best_total.pth"))
    found = {}
    for image in images:
        seen = detector.predict(image, threshold=0.0)
        columns = zip(seen.xyxy.tolist(), seen.class_id.tolist(), seen.confidence.tolist(), strict=True)
        found[image] = [[*box, label, score] for box, label, score in columns]
    Path(file).write_text(json.dumps(found))


def _rfdetr(classes: int, side: int, weights: str | None) -> Any:
    from rfdetr import RFDETRNano

    return RFDETRNano(pretrain_weights=weights, num_classes=classes, resolution=side, device="cpu")


def libreyolo_graph(out: str, classes: int, side: int, model: str) -> None:
    """See `rfdetr_graph`; `model` is the name of a class and a size, as in "LibreYOLOX n"."""
    import libreyolo

    kind, size = model.split()
    detector = getattr(libreyolo, kind)(None, size=size, nb_classes=classes, device="cpu")
    Path(out).mkdir(parents=True, exist_ok=True)
    detector.export(
        format="onnx", imgsz=side, device="cpu", simplify=False, output_path=str(Path(out) / "libreyolo.onnx")
    )


def ssdlite_graph(out: str, classes: int, side: int) -> None:
    """An ONNX file of backbone and head with random weights; torchvision's decoding and NMS are left out."""
    import torch
    from torch import nn

    class Raw(nn.Module):
        def __init__(self, detector: Any) -> None:
            super().__init__()
            self.backbone, self.head = detector.backbone, detector.head

        def forward(self, images: Any) -> Any:
            raw = self.head(list(self.backbone(images).values()))
            return raw["cls_logits"], raw["bbox_regression"]

    network = Raw(_ssdlite(classes)).eval()
    file = Path(out) / "ssdlite.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        (torch.zeros(1, 3, side, side),),
        str(file),
        dynamo=True,
        opset_version=18,
        external_data=False,
        verbose=False,
        input_names=["images"],
        output_names=["logits", "offsets"],
    )


def ssdlite_train(data: str, out: str, classes: int, side: int, epochs: int, batch: int = 24) -> None:
    """The recipe of torchvision's detection references: SGD by a cosine, random crops and flips.

    Their learning rate, 0.15, is for eight processes of 24 images each; one process takes an eighth of it.
    """
    import torch
    from torch.utils.data import DataLoader
    from torchvision import tv_tensors
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    changes = v2.Compose(
        [
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    folder = Path(data) / "train"
    read = CocoDetection(str(folder), str(folder / "_annotations.coco.json"), transforms=changes)
    images = wrap_dataset_for_transforms_v2(read, target_keys=("boxes", "labels"))
    torch.manual_seed(0)
    detector = _ssdlite(classes).train()
    loader = DataLoader(images, batch, shuffle=True, drop_last=True, collate_fn=_transposed)
    optimiser = torch.optim.SGD(detector.parameters(), 0.15 / 8, momentum=0.9, weight_decay=4e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    nowhere = {"boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(1, 1))}
    for _ in range(epochs):
        for pictures, targets in loader:
            known = [
                target if target.get("boxes") is not None else {**nowhere, "labels": torch.zeros(0, dtype=torch.int64)}
                for target in targets
            ]
            optimiser.zero_grad()
            sum(detector(pictures, known).values()).backward()
            optimiser.step()
        schedule.step()
    Path(out).mkdir(parents=True, exist_ok=True)
    torch.save(detector.state_dict(), Path(out) / "weights.pt")


def ssdlite_boxes(out: str, images: Sequence[str], file: str, classes: int, side: int) -> None:
    """See `rfdetr_boxes`; class 0 of torchvision is the background, so classes are one less."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    detector = _ssdlite(classes).eval()
    detector.load_state_dict(torch.load(Path(out) / "weights.pt", weights_only=True))

    def rows(seen: Any) -> Iterator[list[float]]:
        columns = zip(seen["boxes"].tolist(), seen["labels"].tolist(), seen["scores"].tolist(), strict=True)
        for box, label, score in columns:
            yield [*box, label - 1, score]

    with torch.inference_mode():
        found = {image: list(rows(detector([decode_image(image, ImageReadMode.RGB) / 255])[0])) for image in images}
    Path(file).write_text(json.dumps(found))


def _transposed(group: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The pictures of a batch, and its targets."""
    return [picture for picture, _ in group], [target for _, target in group]


def _ssdlite(classes: int) -> Any:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=classes + 1, score_thresh=0.001
    )


PROGRAMS = {
    ("libreyolo", "graph"): libreyolo_graph,
    ("rfdetr", "graph"): rfdetr_graph,
    ("rfdetr", "train"): rfdetr_train,
    ("rfdetr", "boxes"): rfdetr_boxes,
    ("ssdlite", "graph"): ssdlite_graph,
    ("ssdlite", "train"): ssdlite_train,
    ("ssdlite", "boxes"): ssdlite_boxes,
}


if __name__ == "__main__":
    _, peer, verb, arguments = sys.argv
    PROGRAMS[peer, verb](**json.loads(arguments))
