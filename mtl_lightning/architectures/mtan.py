"""Attention of each task over what one shared trunk gives."""

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture, Table
from mtl_lightning.architectures.cells import joined, maximum, parted
from mtl_lightning.architectures.parts import belong, wanted
from mtl_lightning.architectures.seen import Seen
from mtl_lightning.encoders.base import Encoder
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features, FeatureSpec, pool
from mtl_lightning.heads.blocks import Norm, norm_layers


class Mask(nn.Sequential):
    """From features, and what is carried from the level before, to a mask in 0..1: two convolutions 1x1.

    Args:
        channels: of the features.
        carried: channels from the level before.
        hidden: channels between the convolutions.
        norm: behind each of them.
    """

    def __init__(self, channels: int, carried: int, hidden: int, norm: Norm) -> None:
        bias = norm == "none"
        super().__init__(
            nn.Conv2d(channels + carried, hidden, 1, bias=bias),
            *norm_layers(norm, hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=bias),
            *norm_layers(norm, channels),
            nn.Sigmoid(),
        )


class Carry(nn.Module):
    """From attended features to what the next level's mask sees: convolution 3x3, norm, ReLU, then max-pooling.

    Args:
        spec: of the features.
        after: of the next level.
        channels: that come out.
        norm: behind the convolution.
    """

    def __init__(self, spec: FeatureSpec, after: FeatureSpec, channels: int, norm: Norm) -> None:
        super().__init__()
        self.spec, self.after = spec, after
        self.convolution = nn.Conv2d(spec.channels, channels, 3, padding=1, bias=norm == "none")
        self.rest = nn.Sequential(*norm_layers(norm, channels), nn.ReLU(inplace=True))

    def forward(self, attended: Features, size: torch.Size) -> Features:
        """Carry on; a class token is a map of one cell.

        Args:
            attended: of a level.
            size: height and width of the next.
        """
        token = None if attended.token is None else self.convolution(attended.token[..., None, None])[..., 0, 0]
        convolved = Features(self.convolution(attended.tensor), attended.valid, token)
        carried = parted(self.rest(joined(convolved)), convolved)
        return Features(maximum(carried, self.spec, self.after, size), token=carried.token)


class TaskAttention(nn.Module):
    """One task's attention modules.

    Args:
        specs: of the trunk.
        width: hidden channels per channel.
        norm: in all of them.
    """

    def __init__(self, specs: Sequence[FeatureSpec], width: float, norm: Norm) -> None:
        super().__init__()
        hidden = [max(1, round(spec.channels * width)) for spec in specs]
        check_norm(norm, [*hidden, *(spec.channels for spec in specs)])
        carried = [0, *hidden[1:]]
        self.masks = nn.ModuleList(
            Mask(spec.channels, before, inside, norm) for spec, before, inside in zip(specs, carried, hidden, strict=True)
        )
        pairs = zip(pairwise(specs), hidden[1:], strict=True)
        self.carries = nn.ModuleList(Carry(spec, after, channels, norm) for (spec, after), channels in pairs)
        self.seen = Seen()

    def forward(self, pyramid: Sequence[Features]) -> tuple[list[Features], list[Tensor]]:
        """The attended pyramid, and how much of each cell is let through: the mask's mean over channels, [B, 1, h, w]."""
        attended: list[Features] = []
        maps: list[Tensor] = []
        for level, features in enumerate(pyramid):
            cells = seen = joined(features)
            if level:
                carried = self.carries[level - 1](attended[-1], features.tensor.shape[-2:])
                seen = torch.cat([cells, joined(carried)], 1)
            mask = self.masks[level](seen)
            attended.append(parted(cells * mask, features))
            maps.append(parted(mask.mean(1, keepdim=True), features).tensor)
        if self.seen.on:
            pairs = zip(pyramid, maps, strict=True)
            self.seen.add(torch.cat([pool(Features(part, features.valid)) for features, part in pairs], 1))
        return attended, maps


class MTAN(Architecture):
    """Multi-Task Attention Network (S. Liu, E. Johns, A. Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019).

    The trunk runs once. Each task has an attention module for each stage: a mask in 0..1 for each channel and cell of the
    stage's features p, from p and from what the task attended to one stage before:

        mask = sigmoid(norm(conv1x1(ReLU(norm(conv1x1([p, carried]))))))     attended = mask * p
        carried = max-pooled ReLU(norm(conv3x3(attended of the stage before)))

    A task's pyramid is what it attended to: the encoder's channels and strides. A class token is masked like a cell.

    The encoder is shared by all tasks; the attention modules are each their task's own. A module over C channels with h =
    width * C has (C + h) h + h C + 9 C h' weights, h' being the next stage's h, and as many multiplications in each cell. Of a
    ResNet-18 that is 24 % a task at width 1 and 5 % at width 0.25. Fine maps make it slow: a step of three tasks (64 x 64
    pixels, 16 rows, CPU) takes 2.9 times that of hard sharing at width 1, and 1.7 times at width 0.25.

    Where ours differs: the paper reads the mask from a layer inside the stage and puts it on the stage's last; a stage of any
    encoder shows its end alone, which is here both. Heads read the masked features, where the paper has one more convolution
    3x3 behind the last stage. The trunk is the encoder; the paper's SegNet has attention in its decoder, too.

    Args:
        encoder: the trunk.
        tasks: names.
        width: hidden channels of the attention per channel of the stage, > 0; 1 is the paper's.
        norm: of the attention's convolutions: ``batch`` (the paper's), ``layer`` (over the channels of each cell: for small
            batches) or ``none``.

    Raises:
        ConfigError: a width that is not above 0, an unknown norm, or layer norm on a single channel.
    """

    def __init__(self, encoder: Encoder, tasks: Sequence[str], width: float = 1.0, norm: Norm = "batch") -> None:
        super().__init__()
        if not 0 < width < float("inf"):
            raise ConfigError(
                f"model.architecture.init_args.width is {width}, expected a number > 0: hidden channels per channel"
            )
        self.encoder = encoder
        self.tasks = list(tasks)
        self.attend = nn.ModuleDict({task: TaskAttention(encoder.specs, width, norm) for task in tasks})

    def forward(self, source: Features, tasks: Collection[str] | None = None) -> dict[str, list[Features]]:
        """What each task attends to."""
        pyramid = self.encoder(source)
        return {task: self.attend[task](pyramid)[0] for task in wanted(tasks, self.tasks)}

    def specs(self, task: str) -> list[FeatureSpec]:
        """The encoder's."""
        return self.encoder.specs

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """The encoder belongs to all tasks, attention to its task."""
        owners: dict[nn.Parameter, frozenset[str]] = {}
        belong(owners, [self.encoder], self.tasks)
        for task, attention in self.attend.items():
            belong(owners, [attention], [task])
        return owners

    def tables(self) -> dict[str, Table]:
        """``attention``: the mean mask, tasks x stages."""
        means = {task: attention.seen.mean for task, attention in self.attend.items()}  # type: ignore[union-attr]
        found = {task: mean for task, mean in means.items() if isinstance(mean, Tensor)}
        if not found:
            return {}
        stages = [f"stage {number + 1}" for number in range(len(self.encoder.specs))]
        return {"attention": Table(list(found), stages, torch.stack(list(found.values())))}

    def attention(self, source: Features) -> dict[str, list[Tensor]]:
        """The mean over channels of each task's masks."""
        pyramid = self.encoder(source)
        return {task: self.attend[task](pyramid)[1] for task in self.tasks}


def check_norm(norm: Norm, channels: Sequence[int]) -> None:
    """Raise :class:`ConfigError` for a norm that there is not, or that cannot be of so few channels."""
    if norm not in ("batch", "layer", "none"):
        raise ConfigError(f"model.architecture.init_args.norm is '{norm}', expected batch, layer or none")
    if norm == "layer" and min(channels) < 2:
        raise ConfigError(
            "model.architecture.init_args.norm is layer on a single channel, which would be 0 always; take a larger width, or "
            "batch"
        )
