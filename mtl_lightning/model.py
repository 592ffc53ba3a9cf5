"""The network itself: pure torch, to be used and exported without Lightning."""

from collections.abc import Mapping

from torch import Tensor, nn

from mtl_lightning.architectures.base import Architecture
from mtl_lightning.features import Features
from mtl_lightning.tasks.base import Task


class MultiTaskModel(nn.Module):
    """Encoder and architecture with a head for each task.

    Args:
        tasks: names and kinds; each builds its head.
        architecture: from inputs to each task's features.
    """

    def __init__(self, tasks: Mapping[str, Task], architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.heads = nn.ModuleDict({name: task.build_head(architecture.specs(name)) for name, task in tasks.items()})

    def forward(self, inputs: Mapping[str, Tensor], padding: Tensor | None = None) -> dict[str, Tensor]:
        """Every task's raw prediction.

        Args:
            inputs: ``image`` [B, C, H, W] in 0..1.
            padding: bool [B, H, W], True where a picture was filled up.

        Returns:
            Per task [B, channels], or [B, channels, H, W] from dense heads.
        """
        return self.predict(self.features(inputs, padding), inputs)

    def features(self, inputs: Mapping[str, Tensor], padding: Tensor | None = None) -> dict[str, list[Features]]:
        """What every task's head reads; inputs as in :meth:`forward`."""
        valid = None if padding is None else (~padding).unsqueeze(1).to(next(iter(inputs.values())).dtype)
        return self.architecture({name: Features(tensor, valid) for name, tensor in inputs.items()})  # type: ignore[no-any-return]

    def predict(self, features: Mapping[str, list[Features]], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the heads make of it, dense predictions in the size of the inputs."""
        height, width = next(iter(inputs.values())).shape[-2:]
        return {name: head(features[name], (height, width)) for name, head in self.heads.items()}

    def owners(self) -> dict[nn.Parameter, frozenset[str]]:
        """Each parameter and the tasks that use it, heads included."""
        owners = self.architecture.owners()
        for name, head in self.heads.items():
            owners |= dict.fromkeys(head.parameters(), frozenset({name}))
        return owners
