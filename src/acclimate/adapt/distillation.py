"""A large detector that is trained already, and stays as it is, teaches a small one; on target images too.

What a student that fits the device could not find out alone, it can often copy. Four things to copy, each with a
weight, on their own or together:

- `gan` (arXiv 1906.08467): features that a critic cannot tell from the teacher's. One critic a level, alternating with
  the student; after a fraction of the run the student trains on without them.
- `imitation` (Wang et al., CVPR 2019): the teacher's features near objects, where they matter.
- `channel` (Shu et al., ICCV 2021): where in the image each channel is active, as a distribution over its places.
- `response`: the teacher's outputs as soft targets where the two detectors' outputs correspond; its detections as boxes
  where they do not.

The student sees the strong view, the teacher the weak view of the same images, source images always and target images
where there are any. No label of the target is needed: where a method asks for objects, the teacher's detections are
taken there. So a teacher that was adapted, however large, hands its adaptation on.

Features are compared level by level where maps have one size, which on one canvas means one stride; a 1x1 convolution
(an adapter) stands between them where they have different channels. It trains with the student and is dropped at the
end, and so are critics: the student is a plain detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from acclimate.adapt.objective import Step, Term, View
from acclimate.adapt.teacher import as_targets, measure
from acclimate.boxes import tensors
from acclimate.config import ChannelConfig, DistillationConfig, GanConfig, ImitationConfig
from acclimate.errors import AcclimateError
from acclimate.models.detector import Detector, device_of, evaluating, load
from acclimate.structures import Annotations, Detections

if TYPE_CHECKING:
    from acclimate.data.formats import LabelledSet

Mode = Literal["hinge", "wasserstein-clip", "gradient-penalty"]

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of the anchors that `imitation` lays around objects."""
_SLOPE = 0.2
"""Of the critics' leaky ReLU below 0."""
_BETA2 = 0.999


@dataclass(frozen=True, slots=True)
class Level:
    """A level of the student's pyramid and the teacher's of the same size.

    Attributes:
        student, teacher: their places in the two pyramids.
        size: (H, W) of both maps.
        channels: of the student's and the teacher's.
        stride: pixels of the canvas from one row to the next.
    """

    student: int
    teacher: int
    size: tuple[int, int]
    channels: tuple[int, int]
    stride: int


class FrozenTeacher:
    """A trained detector that is asked and never changed.

    It is no module, so that it is in no checkpoint: a run that goes on loads it again.
    """

    def __init__(self, detector: Detector, classes: Sequence[str], thresholds: Sequence[float], doubt: float) -> None:
        """Freeze a detector as the teacher.

        Args:
            detector: what is asked; it is put into evaluation mode.
            classes: the student's.
            thresholds: the score of each of `classes` from which a detection counts as sure.
            doubt: fraction of that score down to which a detection is ignored rather than background.
        """
        self.detector = detector.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.thresholds = np.asarray(thresholds, np.float32)
        self.doubt = doubt
        self._labels = np.array([tuple(classes).index(name) for name in detector.spec.classes], np.int64)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """The teacher's pyramid of (B, 3, H, W) images."""
        if device_of(self.detector) != images.device:
            self.detector.to(images.device)
        return self.detector.features(images)

    @torch.no_grad()
    def raw(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its raw outputs (B, ...) for features (B, C_l, H_l, W_l), one a level; see `Detector.head`."""
        return self.detector.head(features)

    def targets(self, raw: tuple[Tensor, ...]) -> list[Annotations]:
        """The detections in its raw outputs (B, ...) as boxes to learn from, one `Annotations` an image, labels in the
        student's order."""
        found = [Detections(one.boxes, self._labels[one.labels], one.scores) for one in self.detector.decode(raw)]
        return [as_targets(one, self.thresholds, self.doubt) for one in found]


class Lesson:
    """One view of the student, and what the teacher says about the same images.

    Attributes:
        view: the student's.
        student: (B, C, H_l, W_l) of each matched level, with gradients.
        teacher: the same of the teacher, without.
    """

    def __init__(
        self,
        view: View,
        student: Sequence[Tensor],
        teacher: FrozenTeacher,
        images: Tensor,
        levels: Sequence[Level],
        labels: Sequence[Annotations] | None,
    ) -> None:
        """Ask the teacher about a view.

        Args:
            view: the student's.
            student: (B, C_l, H_l, W_l) of each level of the student's pyramid.
            teacher: who is asked.
            images: (B, 3, H, W) that the teacher sees.
            levels: the levels that are compared.
            labels: labelled boxes of the images; None on target images, which have none.
        """
        self.view = view
        self.student = [student[level.student] for level in levels]
        self._asked = teacher
        self._features = teacher.features(images)
        self.teacher = [self._features[level.teacher] for level in levels]
        self.labels = labels

    @cached_property
    def raw(self) -> tuple[Tensor, ...]:
        """The teacher's raw outputs, (B, ...) each."""
        return self._asked.raw(self._features)

    @cached_property
    def found(self) -> list[Annotations]:
        """The teacher's detections as boxes to learn from."""
        return self._asked.targets(self.raw)

    @property
    def objects(self) -> list[Tensor]:
        """(M_i, 4): where the objects of each image are, by its labels or else by the teacher."""
        known = self.found if self.labels is None else self.labels
        return [torch.from_numpy(np.asarray(one.boxes[~one.ignore], np.float32)) for one in known]


class Distillation(Term):
    """See the module. Adapters train with the detector's optimiser; critics have one of their own."""

    views: ClassVar[tuple[View, ...]] = ("source_strong", "target_strong")
    needs_target: ClassVar[bool] = False
    name: ClassVar[str] = "distillation"

    def __init__(
        self,
        config: DistillationConfig,
        teacher: FrozenTeacher,
        levels: Sequence[Level],
        image_size: tuple[int, int],
        corresponds: bool,
    ) -> None:
        """Learn from `teacher` what `config` asks for.

        Args:
            config: the parts and their weights.
            teacher: who is asked.
            levels: the levels of both pyramids that are compared.
            image_size: (height, width) of the canvas, pixels.
            corresponds: whether raw outputs of both correspond, place by place.
        """
        super().__init__()
        self.config = config
        self.levels = tuple(levels)
        self.corresponds = corresponds
        self._teacher = teacher
        self.gan = GanDistillation(config.gan, levels) if config.gan else None
        self.imitation = Imitation(config.imitation, levels, image_size) if config.imitation else None
        self.channel = Channel(config.channel, levels) if config.channel else None

    @classmethod
    def create(cls, options: DistillationConfig, detector: Detector, source: LabelledSet) -> Distillation:
        """Load the teacher and hold it against the student, which takes over its head where that is asked for.

        Raises:
            AcclimateError: the teacher is no finished run, has another canvas or other classes, no level has a map of
                the same size, or its head does not fit.
        """
        teacher = load(options.teacher)
        _check(options.teacher, teacher, detector)
        levels = matched(detector, teacher)
        compared = options.gan or options.imitation or options.channel
        if compared and not levels:
            raise AcclimateError(
                f"adapt.distillation.teacher: {options.teacher}: no level of its pyramid has the stride of one of the "
                f"student's ({_strides(teacher)} against {_strides(detector)}); give the student model.strides of it"
            )
        if options.head == "teacher":
            take_head(detector, teacher, options.teacher)
        classes = detector.spec.classes
        thresholds = [1.0] * len(classes)
        if isinstance(options.threshold, float):
            thresholds = [options.threshold] * len(classes)
        elif options.response or options.imitation:
            thresholds = list(measure(teacher, source).thresholds)
        frozen = FrozenTeacher(teacher, classes, thresholds, options.doubt)
        return cls(options, frozen, levels, detector.spec.image_size, correspond(detector, teacher))

    def forward(self, step: Step) -> dict[str, Tensor]:
        lessons = [self._lesson(step, view) for view in self.views if view in step.views]
        losses: dict[str, Tensor] = {}
        if self.gan is not None:
            losses["gan"] = self.gan.config.weight * self.gan(lessons, step.progress)
        if self.imitation is not None:
            losses["imitation"] = self.imitation.config.weight * self.imitation(lessons)
        if self.channel is not None:
            losses["channel"] = self.channel.config.weight * self.channel(lessons)
        if self.config.response:
            for lesson in lessons:
                for name, loss in self._response(step, lesson).items():
                    losses[name] = losses.get(name, loss.new_zeros(())) + loss
        return {f"distillation/{name}": loss for name, loss in losses.items()}

    @property
    def one_width(self) -> str:
        if all(part is None for part in (self.gan, self.imitation, self.channel)):
            return ""
        return (
            "distillation: gan, imitation and channel are made for one number of channels, and widths differ in it; "
            "keep response alone"
        )

    def watch(self) -> None:
        """What `seen` returns is there anyway."""

    def seen(self) -> dict[str, Any]:
        """The critics' last scores, where there are critics and they still train."""
        scores = self.gan.scores() if self.gan is not None else {}
        return {"critics": scores} if scores else {}

    def _lesson(self, step: Step, view: View) -> Lesson:
        source = view == "source_strong"
        if self.config.view == "weak":
            other: View = "source_weak" if source else "target_weak"
        else:
            other = view
        labels = step.source.targets if source and step.source is not None else None
        return Lesson(view, step.features(view), self._teacher, step.images(other), self.levels, labels)

    def _response(self, step: Step, lesson: Lesson) -> dict[str, Tensor]:
        told = self.config.response
        soft, hard = (step.detector.response, 1.0) if isinstance(told, str) else (told, told)
        losses: dict[str, Tensor] = {}
        if self.corresponds:
            sure = float(self._teacher.thresholds.min())
            for name, loss in step.distillation(lesson.view, lesson.raw, sure).items():
                losses[f"soft_{name}"] = soft * loss
        # Soft targets of a second stage say nothing to the stage that proposes; without labels nothing else does.
        if not self.corresponds or (lesson.labels is None and not step.detector.trains_on_raw):
            losses.update({f"box_{name}": hard * loss for name, loss in step.losses(lesson.view, lesson.found).items()})
        return losses


class GanDistillation(nn.Module):
    """Critics that tell the teacher's features from the student's, and the loss of a student that is found out.

    The critics' parameters take no gradient from the student's loss: they are frozen but for the moment of their own
    update, which alternates with the student's step. So neither side leaves gradients on the other, and distributed
    training, which waits for a gradient of every parameter that takes one, does not wait for theirs; their gradients
    are averaged over the processes here. Critics and the state of their optimiser are part of the run's state.
    """

    def __init__(self, config: GanConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.config = config
        self.strides = [level.stride for level in levels]
        self.adapters = nn.ModuleList(_adapter(level) for level in levels)
        wide = [level.channels[1] if config.width == "map" else config.width for level in levels]
        self.critics = nn.ModuleList(
            critic(level.channels[1], level.size, width, normalised=config.mode == "hinge")
            for level, width in zip(levels, wide, strict=True)
        ).requires_grad_(False)
        self._clip()
        self._optimizer = torch.optim.Adam(self.critics.parameters(), lr=config.lr, betas=(config.beta1, _BETA2))
        self._scores: list[tuple[Tensor, Tensor]] = []

    def forward(self, lessons: Sequence[Lesson], progress: float) -> Tensor:
        """The student's loss, a scalar: the sum over levels and views of mean D(student), after a step of the critics;
        0 in the plain phase."""
        if progress >= self.config.until:
            self._scores = []
            # Distributed training waits for a gradient of the adapters all the same.
            idle = [0.0 * parameter.sum() for parameter in self.adapters.parameters()]
            return torch.stack(idle).sum() if idle else lessons[0].student[0].new_zeros(())
        with torch.autocast(lessons[0].student[0].device.type, enabled=False):
            student = [
                adapter(torch.cat([lesson.student[i] for lesson in lessons]).float())
                for i, adapter in enumerate(self.adapters)
            ]
            teacher = [torch.cat([lesson.teacher[i] for lesson in lessons]).float() for i in range(len(student))]
            for _ in range(self.config.critic_steps if self.training else 0):
                self._train_critics(teacher, [level.detach() for level in student])
            scores = [judge(level).mean() for judge, level in zip(self.critics, student, strict=True)]
            return len(lessons) * torch.stack(scores).sum()

    def scores(self) -> dict[str, dict[str, float]]:
        """Of each stride's critic at its last update: mean scores of both sides, and their spread over images."""
        return {
            str(stride): {
                "teacher": float(teacher.mean()),
                "student": float(student.mean()),
                "spread": float(torch.cat([teacher - teacher.mean(), student - student.mean()]).square().mean().sqrt()),
            }
            for stride, (teacher, student) in zip(self.strides, self._scores, strict=False)
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])

    @torch.enable_grad()
    def _train_critics(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> None:
        parameters = list(self.critics.parameters())
        self.critics.requires_grad_(True)
        self._scores = []
        losses = []
        for judge, real, copied in zip(self.critics, teacher, student, strict=True):
            scores = judge(real), judge(copied)
            losses.append(critic_loss(self.config.mode, *scores))
            if self.config.mode == "gradient-penalty":
                losses.append(self.config.penalty * gradient_penalty(judge, real, copied))
            self._scores.append((scores[0].detach(), scores[1].detach()))
        gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters)
        self.critics.requires_grad_(False)
        for parameter, gradient in zip(parameters, _averaged(gradients), strict=True):
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._clip()

    @torch.no_grad()
    def _clip(self) -> None:
        if self.config.mode == "wasserstein-clip":
            for parameter in self.critics.parameters():
                parameter.clamp_(-self.config.clip, self.config.clip)


def critic(channels: int, size: tuple[int, int], width: int, *, normalised: bool) -> nn.Sequential:
    """Maps (B, channels, *size) to a score each (B,): convolutions of stride 2 down to one place, then one number.

    Args:
        channels: of the maps.
        size: (H, W) of the maps.
        width: channels of the convolutions (512 in the paper).
        normalised: whether every weight is divided by its spectral norm (Miyato et al. 2018), which bounds how fast
            scores change.
    """

    def layer(given: int, made: int, side: int) -> nn.Module:
        convolution = nn.Conv2d(given, made, side, stride=2 if side > 1 else 1, padding=side // 2)
        return spectral_norm(convolution) if normalised else convolution

    layers: list[nn.Module] = []
    side, given = max(size), channels
    while side > 1 or not layers:
        layers += [layer(given, width, 3), nn.LeakyReLU(_SLOPE)]
        side, given = (side + 1) // 2, width
    return nn.Sequential(*layers, layer(width, 1, 1), nn.Flatten(0))


def critic_loss(mode: Mode, teacher: Tensor, student: Tensor) -> Tensor:
    """What a critic minimises, from its scores (B,): low is the teacher, high the student, as in the paper.

    mean D(teacher) - mean D(student) (Arjovsky et al. 2017), or its hinged form mean max(0, 1 + D(teacher)) +
    mean max(0, 1 - D(student)) (Lim and Ye 2017), which leaves alone what is told apart well enough.
    """
    if mode == "hinge":
        return F.relu(1 + teacher).mean() + F.relu(1 - student).mean()
    return teacher.mean() - student.mean()


def gradient_penalty(judge: Callable[[Tensor], Tensor], teacher: Tensor, student: Tensor) -> Tensor:
    """mean (||grad D(x)|| - 1)^2, x at random between the teacher's and the student's map (Gulrajani et al. 2017).

    Args:
        judge: the critic.
        teacher, student: (B, C, H, W), without gradients.
    """
    share = torch.rand(len(teacher), 1, 1, 1, device=teacher.device)
    between = (share * teacher + (1 - share) * student).requires_grad_(True)
    (gradient,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    lengths: Tensor = gradient.flatten(1).norm(dim=1)
    return (lengths - 1).square().mean()


class Imitation(nn.Module):
    """Fine-grained feature imitation: the squared distance of features near objects (Wang et al. 2019, equation 2).

    There, adapters are 3x3; here they are 1x1, and start as the identity where channels are as many. An image's
    distances are divided by its own number of places near objects, so that a batch shared out over processes weighs
    them the same.
    """

    def __init__(self, config: ImitationConfig, levels: Sequence[Level], image_size: tuple[int, int]) -> None:
        super().__init__()
        self.config = config
        self.sizes = [level.size for level in levels]
        self.image_size = image_size
        self.adapters = nn.ModuleList(_convolution(level) for level in levels)

    def forward(self, lessons: Sequence[Lesson]) -> Tensor:
        """The sum of the lessons' losses, a scalar."""
        return torch.stack([self._of(lesson) for lesson in lessons]).sum()

    def _of(self, lesson: Lesson) -> Tensor:
        config = self.config
        near = [near_objects(one, self.sizes, self.image_size, config.anchors, config.near) for one in lesson.objects]
        distances, counts = [], []
        for i, adapter in enumerate(self.adapters):
            mask = torch.stack([image[i] for image in near]).to(lesson.teacher[i].device).float()
            apart = (adapter(lesson.student[i]).float() - lesson.teacher[i].float()).square().sum(1)
            distances.append((apart * mask).sum((1, 2)))
            counts.append(mask.sum((1, 2)))
        total, count = torch.stack(distances).sum(0), torch.stack(counts).sum(0)
        return (total / (2 * count.clamp(min=1))).mean()


def near_objects(
    boxes: Tensor,
    sizes: Sequence[tuple[int, int]],
    image_size: tuple[int, int],
    sides: Sequence[float],
    near: float,
) -> list[Tensor]:
    """(H_l, W_l) bool a level: where an anchor overlaps an object about as much as any does (Wang et al., section 3.1).

    Every place has anchors of each of `sides` in strides and each of `RATIOS`. A place is near an object where the IoU
    of one of its anchors is above `near` times the largest that the object has with any anchor, of all levels.

    Args:
        boxes: (M, 4) objects of one image on its canvas.
        sizes: (H_l, W_l) of the levels.
        image_size: (height, width) of the canvas.
        sides: of a square anchor, in strides of its level.
        near: 0..1; the larger, the fewer places.
    """
    anchors = [_anchors(size, image_size, sides) for size in sizes]
    if not len(boxes):
        return [torch.zeros(size, dtype=torch.bool) for size in sizes]
    overlap = tensors.pairwise(boxes, torch.cat(anchors))
    best = overlap.amax(1, keepdim=True)
    chosen = ((overlap > near * best) & (best > 0)).any(0)
    levels = torch.split(chosen, [len(one) for one in anchors])
    return [one.view(*size, -1).any(-1) for one, size in zip(levels, sizes, strict=True)]


class Channel(nn.Module):
    """Channel-wise distillation: KL divergence of where each channel is active (Shu et al. 2021, equation 4)."""

    def __init__(self, config: ChannelConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.config = config
        self.adapters = nn.ModuleList(_adapter(level) for level in levels)

    def forward(self, lessons: Sequence[Lesson]) -> Tensor:
        """The sum of the lessons' losses, a scalar."""
        losses = [
            channel_loss(adapter(lesson.student[i]).float(), lesson.teacher[i].float(), self.config.temperature)
            for lesson in lessons
            for i, adapter in enumerate(self.adapters)
        ]
        return torch.stack(losses).sum() / len(self.adapters)


def channel_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of each channel's softmax over its places at temperature T, mean over channels.

    Args:
        student, teacher: (B, C, H, W).
        temperature: the higher, the more places count.
    """
    own, wanted = ((maps.flatten(2) / temperature).log_softmax(-1) for maps in (student, teacher))
    return temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1).mean()


def matched(student: Detector, teacher: Detector) -> list[Level]:
    """The levels whose maps have the same size, measured on an empty image; the n-th of a size with the n-th."""
    height, width = student.spec.image_size
    found: list[list[Tensor]] = []
    for detector in (student, teacher):
        with evaluating(detector):
            found.append(detector.features(torch.zeros(1, 3, height, width, device=device_of(detector))))
    own, other = found
    free = list(range(len(other)))
    levels = []
    for i, level in enumerate(own):
        match = next((j for j in free if other[j].shape[2:] == level.shape[2:]), None)
        if match is not None:
            free.remove(match)
            rows, columns = level.shape[2:]
            channels = (level.shape[1], other[match].shape[1])
            levels.append(Level(i, match, (rows, columns), channels, round(height / rows)))
    return levels


def correspond(student: Detector, teacher: Detector) -> bool:
    """Whether the student can learn from the teacher's raw outputs: one kind of head, grid and order of classes."""
    same = {"kind", "strides", "priors"}
    own, other = (detector.decode_options().model_dump(include=same) for detector in (student, teacher))
    kinds = type(student).distillation is type(teacher).distillation
    return kinds and own == other and student.spec.classes == teacher.spec.classes


def take_head(student: Detector, teacher: Detector, path: Path) -> None:
    """Start the student's head from the teacher's trained one, which then trains on with the student.

    Raises:
        AcclimateError: the heads differ; `path` names the teacher.
    """
    try:
        if not student.predictors or student.predictors != teacher.predictors:
            raise ValueError(f"a {teacher.spec.kind} detector's for a {student.spec.kind} one")
        if student.spec.classes != teacher.spec.classes:
            raise ValueError("its classes are in another order")
        for name in student.predictors:
            student.get_submodule(name).load_state_dict(teacher.get_submodule(name).state_dict())
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise AcclimateError(
            f"adapt.distillation.head: the head of {path} does not fit the student ({reason}); use head=own, or give "
            "the student the teacher's model.kind, strides, channels and depth"
        ) from None


def _check(path: Path, teacher: Detector, student: Detector) -> None:
    own, other = student.spec, teacher.spec
    if own.image_size != other.image_size:
        (height, width), (rows, columns) = own.image_size, other.image_size
        raise AcclimateError(
            f"adapt.distillation.teacher: {path}: its canvas is {rows} x {columns}, the student's {height} x {width}; "
            f"give both the same model.image_size"
        )
    if set(own.classes) != set(other.classes):
        raise AcclimateError(
            f"adapt.distillation.teacher: {path}: it knows {', '.join(other.classes)}, the student "
            f"{', '.join(own.classes)}; train both on the same classes (source.classes renames them)"
        )


def _strides(detector: Detector) -> str:
    return ", ".join(map(str, detector.spec.strides))


def _adapter(level: Level) -> nn.Module:
    return nn.Identity() if level.channels[0] == level.channels[1] else _convolution(level)


def _convolution(level: Level) -> nn.Conv2d:
    made = nn.Conv2d(*level.channels, 1)
    if level.channels[0] == level.channels[1]:
        nn.init.dirac_(made.weight)
        assert made.bias is not None
        nn.init.zeros_(made.bias)
    return made


def _anchors(size: tuple[int, int], image_size: tuple[int, int], sides: Sequence[float]) -> Tensor:
    """(H * W * A, 4), xyxy pixels, row by row."""
    step_y, step_x = image_size[0] / size[0], image_size[1] / size[1]
    y, x = torch.meshgrid((torch.arange(size[0]) + 0.5) * step_y, (torch.arange(size[1]) + 0.5) * step_x, indexing="ij")
    ratios, wide = torch.tensor(RATIOS).sqrt()[:, None], torch.tensor(sides) / 2
    half_y, half_x = wide * step_y * ratios, wide * step_x / ratios
    corner = torch.stack([half_x.flatten(), half_y.flatten()], -1)
    centre = torch.stack([x, y], -1).reshape(-1, 1, 2)
    return torch.cat([centre - corner, centre + corner], -1).reshape(-1, 4)


def _averaged(gradients: Iterable[Tensor]) -> list[Tensor]:
    """The mean of each gradient over the processes."""
    gradients = list(gradients)
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / dist.get_world_size(), [gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]
