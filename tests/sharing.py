"""What tests of architectures have in common: small encoders, and what autograd says of owners."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from mtl_lightning.architectures import Architecture
from mtl_lightning.encoders import SmallCNN, Stage
from mtl_lightning.features import Features


def small(*widths: int, norm: bool = True) -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(list(widths), norm=norm).double()


def pictures(rows: int = 2, size: int = 16) -> Features:
    return Features(torch.rand(rows, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def value(pyramid: Collection[Features]) -> Tensor:
    """A scalar that every level has a part in."""
    return torch.stack([(level.tensor * torch.linspace(0.5, 1.5, level.tensor[0].numel()).view(level.tensor.shape[1:])).sum()
                        for level in pyramid]).sum()  # fmt: skip


def assert_owners(architecture: Architecture, source: Features) -> None:
    """Each task's loss has a gradient by what it owns, and by nothing else."""
    owners, names = architecture.owners(), {parameter: name for name, parameter in architecture.named_parameters()}
    assert set(owners) == set(names)
    for task, pyramid in architecture(source).items():
        found = torch.autograd.grad(value(pyramid), list(owners), allow_unused=True, retain_graph=True)
        for (parameter, users), gradient in zip(owners.items(), found, strict=True):
            assert (gradient is not None) == (task in users), f"{task}: {names[parameter]} belongs to {users}"


def gradients(pyramid: Collection[Features], module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value(pyramid), list(module.parameters()), retain_graph=True))


def calls(architecture: Architecture, source: Features, tasks: Collection[str] | None) -> list[int]:
    """How many copies of each stage ran."""
    counts = [0] * len(architecture.stages())

    def count(level: int) -> object:
        def hook(stage: Stage, *_: object) -> None:
            counts[level] += 1

        return hook

    handles = [
        stage.register_forward_hook(count(level))  # type: ignore[arg-type]
        for level, stages in enumerate(architecture.stages())
        for stage in stages
    ]
    architecture(source, tasks)
    for handle in handles:
        handle.remove()
    return counts
