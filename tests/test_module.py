"""One training step seen from inside: who gets a gradient, and of what."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from mtl_lightning.architectures import HardSharing
from mtl_lightning.batch import Batch, Collate
from mtl_lightning.encoders import SmallCNN
from mtl_lightning.errors import CheckpointError
from mtl_lightning.main import main
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.optimization import parameter_groups
from mtl_lightning.restore import check_state
from mtl_lightning.tasks import Classification, Depth, Regression, SemanticSegmentation, SurfaceNormals
from mtl_lightning.tasks.base import Task
from mtl_lightning.weighting import UW, TaskInfo

pytestmark = pytest.mark.usefixtures("no_pictures")

CONF = Path(__file__).parent / "conf" / "tiny.yaml"


class Watcher(Callback):
    """Notes every parameter's gradient at each optimizer step, and whether the step moved it."""

    steps: ClassVar[list[dict[str, Any]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.steps.clear()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = dict(pl_module.named_parameters())
        self.before = {name: value.detach().clone() for name, value in named.items()}
        self.grads = {name: None if value.grad is None else value.grad.detach().clone() for name, value in named.items()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        moved = {name: not torch.equal(self.before[name], value.detach()) for name, value in pl_module.named_parameters()}
        labelled = {task: bool(rows.any()) for task, rows in batch.labelled.items()}
        self.steps.append({"grads": self.grads, "moved": moved, "labelled": labelled})


@pytest.mark.parametrize("weighting", ["Equal", "UW"])
def test_a_head_without_a_label_rests(tmp_path: Path, weighting: str) -> None:
    """AdamW with weight decay and momentum would move it at a gradient of zero."""
    main(["fit", "--config", str(CONF), "--runs", str(tmp_path), f"--model.weighting={weighting}",
          "--model.optimizer.init_args.weight_decay=0.1", "--data.init_args.hidden={color: 0.2, mask: 0.9}",
          "--trainer.callbacks+=tests.test_module.Watcher", "--data.init_args.batch_size=6"])  # fmt: skip
    absent = [step for step in Watcher.steps if not step["labelled"]["mask"]]
    present = [step for step in Watcher.steps if step["labelled"]["mask"]]
    assert absent and present
    for step in absent:
        for name, grad in step["grads"].items():
            if "heads.mask" in name:
                assert grad is None, name
                assert not step["moved"][name], name
            elif "heads.color" in name:
                assert grad is not None and step["moved"][name], name
    for step in present:
        assert all(step["moved"][name] for name in step["moved"] if "heads.mask" in name)


def network() -> tuple[MultiTaskModel, dict[str, Any]]:
    torch.manual_seed(0)
    tasks = {
        "color": Classification(classes=["a", "b", "c"]),
        "level": Regression(names=["one", "two"]),
        "mask": SemanticSegmentation(classes=["no", "yes"]),
    }
    for name, task in tasks.items():
        task.name = name
    tasks["color"].learn([torch.tensor(value) for value in (0, 1, 2)])
    tasks["level"].learn([torch.rand(2) for _ in range(4)])
    tasks["mask"].learn([torch.ones(8, 8, dtype=torch.long)])
    return MultiTaskModel(tasks, HardSharing(SmallCNN([4, 4]), list(tasks))), tasks


def batch_of(tasks: dict[str, Any], present: dict[str, list[int]], rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    targets = {"color": lambda: torch.tensor(1), "level": lambda: torch.rand(2, generator=generator),
               "mask": lambda: torch.ones(8, 8, dtype=torch.long)}  # fmt: skip
    samples = []
    for row in range(rows):
        sample: dict[str, Any] = {"id": str(row), "image": torch.rand(3, 8, 8, generator=generator)}
        samples.append(sample | {task: targets[task]() for task, labelled in present.items() if row in labelled})
    return Collate({name: task.target for name, task in tasks.items()})(samples)


def total(masked: Any) -> Tensor:
    return sum((term.total / term.denominator.clamp_min(1e-9) for term in masked.values()), torch.zeros(()))


def test_rows_without_a_label_give_no_gradient() -> None:
    model, tasks = network()
    model.eval()
    batch = batch_of(tasks, {"color": [0, 2], "level": [1], "mask": [3]})
    image = batch.inputs["image"].requires_grad_()
    for name, labelled in {"color": [0, 2], "level": [1], "mask": [3]}.items():
        prediction = model({"image": image}, None)[name]
        gradient = torch.autograd.grad(total(tasks[name].loss(prediction, batch.targets[name], batch.labelled[name])), image)[0]
        assert [row for row in range(4) if gradient[row].abs().sum() > 0] == labelled


def test_owners_and_groups_cover_every_parameter_once() -> None:
    model, tasks = network()
    owners = model.owners()
    assert set(owners) == set(model.parameters())
    for name, parameter in model.named_parameters():
        assert owners[parameter] == ({name.split(".")[1]} if name.startswith("heads.") else set(tasks)), name
    weighting = UW()
    weighting.setup([TaskInfo(name) for name in tasks])
    groups = {group["name"]: group["params"] for group in parameter_groups(model, weighting)}
    assert list(groups) == ["encoder", "heads", "weighting"]
    listed = [parameter for group in groups.values() for parameter in group]
    assert len(listed) == len(set(listed)) == len(list(model.parameters())) + len(list(weighting.parameters()))


def test_the_network_depends_on_the_seed_alone(tmp_path: Path) -> None:
    states = []
    for name, rows, seed in (("one", 48, 0), ("two", 24, 0), ("three", 48, 1)):
        main(["fit", "--config", str(CONF), "--runs", str(tmp_path), f"--name={name}", f"--data.init_args.rows={rows}",
              f"--seed_everything={seed}", "--model.optimizer.init_args.lr=0", "--trainer.max_epochs=1"])  # fmt: skip
        states.append(torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    key = next(key for key in states[0] if key.startswith("model.architecture") and key.endswith("conv.weight"))
    assert torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[0][key], states[2][key])


def test_the_model_is_pure_torch_and_exportable() -> None:
    model, _ = network()
    model.eval()
    image = torch.rand(2, 3, 16, 16)
    exported = torch.export.export(model, ({"image": image},)).module()
    for name, prediction in exported({"image": image}).items():
        assert torch.allclose(prediction, model({"image": image})[name], atol=1e-6)


def test_a_checkpoint_with_another_kind_of_task_of_that_name() -> None:
    def module(task: Task) -> Any:
        holder: Any = nn.Module()
        holder.tasks = nn.ModuleDict({"surface": task})
        return holder

    with pytest.raises(CheckpointError, match=r"'surface' of the checkpoint has labels of kind normals.*Depth of kind depth"):
        check_state(module(Depth()), module(SurfaceNormals()).state_dict(), training=True)


def test_padding_changes_no_prediction_of_stages_that_divide_evenly() -> None:
    model, _ = network()
    model.eval()
    image = torch.rand(1, 3, 32, 32)
    padded, padding = torch.zeros(1, 3, 40, 48), torch.ones(1, 40, 48, dtype=torch.bool)
    padded[..., :32, :32], padding[:, :32, :32] = image, False
    alone, together = model({"image": image}), model({"image": padded}, padding)
    for name in ("color", "level"):
        assert torch.allclose(together[name], alone[name], atol=1e-6), name
    # Of dense predictions, what is further from the border than the head's own convolutions reach.
    assert torch.allclose(together["mask"][..., :8, :8], alone["mask"][..., :8, :8], atol=1e-6)
