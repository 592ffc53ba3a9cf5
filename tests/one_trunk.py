"""What the tests of architectures with one trunk share: pictures, texts, and gradients held against what owners say."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from mtl_lightning.architectures import Architecture
from mtl_lightning.encoders import Encoder, ImageEncoder, SmallCNN, Stage
from mtl_lightning.encoders.vit import BlockStage, Patches
from mtl_lightning.features import Features, FeatureSpec
from mtl_lightning.gradients import EngineOptions
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Classification
from mtl_lightning.tasks.base import Task
from mtl_lightning.training import Surroundings, Training
from mtl_lightning.weighting import TaskInfo, Weighting
from tests.methods import batch_of

TASKS = ["color", "shade"]


def small(norm: bool = False, widths: tuple[int, ...] = (4, 6, 8)) -> SmallCNN:
    """Three stages in float64."""
    torch.manual_seed(0)
    return SmallCNN(list(widths), norm=norm).double()


def picture(rows: int = 3, size: tuple[int, int] = (16, 16)) -> Features:
    return Features(torch.rand(rows, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def wake(architecture: Architecture) -> Architecture:
    """Let what starts at zero be something else, so that gradients flow everywhere; in float64."""
    generator = torch.Generator().manual_seed(2)
    architecture.double()
    with torch.no_grad():
        for parameter in architecture.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return architecture


def check_owners(architecture: Architecture, source: Features) -> None:
    """A loss of each task's last level (and class token) has a gradient by what owners say, and by nothing else."""
    owners = architecture.owners()
    assert set(owners) == set(architecture.parameters())
    for task, pyramid in architecture(source).items():
        last = pyramid[-1]
        loss = last.tensor.square().sum() + (0.0 if last.token is None else last.token.pow(3).sum())
        found = torch.autograd.grad(loss, list(owners), retain_graph=True, allow_unused=True)
        for (parameter, users), gradient in zip(owners.items(), found, strict=True):
            names = [name for name, value in architecture.named_parameters() if value is parameter]
            assert (gradient is not None and bool(gradient.any())) == (task in users), (task, names)


def strided() -> Encoder:
    """Three stages whose maps do not depend on what padding follows, whatever the size of the picture."""
    torch.manual_seed(0)
    sizes = [3, 4, 6, 8]
    stages = []
    for depth in range(3):
        convolution = nn.Conv2d(sizes[depth], sizes[depth + 1], 3, stride=2, padding=1)
        stages.append(Stage(nn.Sequential(convolution, nn.Tanh()), FeatureSpec(sizes[depth + 1], 2 ** (depth + 1))))
    return ImageEncoder(stages, 3, 0.0, 1.0).double()


def check_padding(architecture: Architecture, height: int = 11, width: int = 13) -> None:
    """A picture in a larger one gives what it gives alone, over :func:`strided`."""
    architecture.eval()
    alone = picture(2, (height, width))
    tensor, valid = torch.full((2, 3, 24, 32), 0.7, dtype=torch.float64), torch.zeros(2, 1, 24, 32, dtype=torch.float64)
    tensor[..., :height, :width], valid[..., :height, :width] = alone.tensor, 1.0
    with torch.no_grad():
        expected, found = architecture(alone), architecture(Features(tensor, valid))
    for task, pyramid in expected.items():
        for one, other in zip(pyramid, found[task], strict=True):
            high, wide = one.tensor.shape[-2:]
            assert torch.allclose(other.tensor[..., :high, :wide], one.tensor, rtol=0, atol=1e-12), task
            assert not bool(other.tensor[..., high:, :].any() or other.tensor[..., wide:].any()), task


@contextmanager
def counted(architecture: Architecture) -> Iterator[list[int]]:
    """How often each stage runs."""
    calls: list[int] = []
    hooks = []
    for level, (stage,) in enumerate(architecture.stages()):
        calls.append(0)

        def count(module: nn.Module, inputs: object, output: object, level: int = level) -> None:
            calls[level] += 1

        hooks.append(stage.register_forward_hook(count))
    yield calls
    for hook in hooks:
        hook.remove()


class Words(Stage):
    """Token ids as a map of height 1."""

    def step(self, features: Features) -> Features:
        tensor = self.body(features.tensor).transpose(1, 2).unsqueeze(2)
        return Features(tensor * features.valid if features.valid is not None else tensor, features.valid)


class TextEncoder(Encoder):
    """An embedding and two convolutions of 1 x 3."""

    def __init__(self, width: int = 6) -> None:
        torch.manual_seed(0)
        stages: list[Stage] = [Words(nn.Embedding(20, width), FeatureSpec(width))]
        for _ in range(2):
            body = nn.Sequential(nn.Conv2d(width, width, (1, 3), padding=(0, 1)), nn.Tanh())
            stages.append(Stage(body, FeatureSpec(width)))
        super().__init__(stages)

    def start(self, image: Features) -> Features:
        return image


def transformer() -> Encoder:
    """A tiny vision transformer of two stages, with a class token."""
    torch.manual_seed(0)
    spec, width = FeatureSpec(8, 8, token=True), 8
    blocks = [EncoderBlock(2, width, 16, 0.0, 0.0) for _ in range(2)]
    patches = Patches(nn.Conv2d(3, width, 8, 8), nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width)))
    stages = [BlockStage(blocks[:1], spec, patches), BlockStage(blocks[1:], spec, norm=nn.LayerNorm(width))]
    return ImageEncoder(stages, 3, 0.0, 1.0).double()


def check_token(architecture: Architecture) -> None:
    """Heads that read the class token alone train what the task owns, and padding has no say in it."""
    owners, tensor, valid = architecture.owners(), picture(2, (24, 32)).tensor, torch.zeros(2, 1, 24, 32, dtype=torch.float64)
    for task, pyramid in architecture(Features(tensor[..., :16, :16])).items():
        assert [level.token.shape[1] for level in pyramid] == [spec.channels for spec in architecture.specs(task)]  # type: ignore[union-attr]
        own = [value for value, users in owners.items() if users == {task}]
        gradients = torch.autograd.grad(pyramid[-1].token.pow(3).sum(), own, retain_graph=True)  # type: ignore[union-attr]
        assert all(gradient.any() for gradient in gradients)
    valid[..., :16, :16] = 1
    architecture.eval()
    with torch.no_grad():
        alone = architecture(Features(tensor[..., :16, :16], valid[..., :16, :16]))
        found = architecture(Features(tensor, valid))
    for task, pyramid in alone.items():
        for one, other in zip(pyramid, found[task], strict=True):
            assert torch.allclose(one.token, other.token, rtol=0, atol=1e-10)  # type: ignore[arg-type]
            assert torch.allclose(one.tensor, other.tensor[..., :2, :2], rtol=0, atol=1e-10)


def text() -> Features:
    """Ids with padding behind the second row."""
    ids = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    valid = torch.ones(3, 1, 1, 7, dtype=torch.float64)
    valid[1, ..., 4:] = 0
    return Features(ids, valid)


def step_of(architecture: Architecture, method: Weighting, said: list[str], frozen: list[nn.Parameter]) -> dict[str, Tensor]:
    """Take the gradients of a step, and give the tasks' losses, with their graphs."""
    tasks: dict[str, Task] = {"color": Classification(classes=["a", "b", "c"]), "shade": Classification(classes=["d", "e"])}
    for name, task in tasks.items():
        task.name = name
        task.learn([torch.tensor(0), torch.tensor(1)])
    torch.manual_seed(5)
    model = MultiTaskModel(tasks, architecture).double()
    method.prepare([TaskInfo(task) for task in tasks])
    around = Surroundings(
        lambda tensor: tensor, 1, 0, said.append, lambda: frozen, nullcontext, lambda: 0.1, lambda: 1.0, lambda number: batch
    )
    training = Training(model, tasks, method.double(), [], EngineOptions(), around)
    batch = batch_of(tasks, 0)
    training.prepare(batch)
    training.backward(training.objective(batch), False)
    losses = training.losses(model(batch.inputs, batch.padding), batch)
    return dict(losses.scalars)
