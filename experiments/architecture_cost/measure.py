"""What architectures cost beside plain encoders: forward and backward in turns in one process, ratios of pairs.

    python experiments/architecture_cost/measure.py

``HardSharing`` in a ``MultiTaskModel`` with a linear head a task is held against a plain module of the same layers; every other
architecture against as many encoders as it has copies of the last stage, which run one after the other. The loss of a task is
the sum of its head's outputs, or without heads the mean of its last features. ``--grouped`` compares ways to run experts of one
shape at once. Times are those of the processor, which other programs on the machine disturb less than the clock.
"""

import argparse
import copy
import gc
import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtl_lightning.architectures
import mtl_lightning.encoders
from mtl_lightning.architectures import Architecture, HardSharing
from mtl_lightning.encoders import Encoder
from mtl_lightning.features import Features
from mtl_lightning.model import MultiTaskModel
from mtl_lightning.tasks import Regression

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "MMoE, experts = tasks": {"class_path": "MMoE", "init_args": {"experts": "tasks"}},
    "MMoE, experts = tasks, nothing shared": {"class_path": "MMoE", "init_args": {"experts": "tasks", "shared": 0}},
    "CGC": {"class_path": "CGC"},
    "PLE": {"class_path": "PLE"},
    "DSelectK, experts = tasks": {"class_path": "DSelectK", "init_args": {"experts": "tasks", "selected": 1}},
}
"""Class path and options by name; the option "tasks" is replaced by the number of tasks."""

Step = Callable[[], None]


def build(package: Any, class_path: str, init_args: dict[str, Any], *args: Any) -> Any:
    """An object of a class by its short name in a package, or by its path."""
    if "." in class_path:
        module, _, class_path = class_path.rpartition(".")
        package = importlib.import_module(module)
    return getattr(package, class_path)(*args, **init_args)


class Plain(nn.Module):
    """What one would write for a trunk with linear heads."""

    def __init__(self, encoder: Encoder, tasks: Sequence[str]) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(stage.body for stage in encoder.stages))
        self.heads = nn.ModuleDict({task: nn.Linear(encoder.specs[-1].channels, 1) for task in tasks})
        self.register_buffer("mean", encoder.mean.clone())
        self.register_buffer("std", encoder.std.clone())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = F.adaptive_avg_pool2d(self.stages((image - self.mean) / self.std), 1).flatten(1)
        return {task: head(features) for task, head in self.heads.items()}


def step_of(model: nn.Module, losses: Callable[[], Sequence[Tensor]]) -> Step:
    """A forward and a backward pass."""

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        torch.stack(list(losses())).sum().backward()

    return step


def hard_sharing(encoder: Encoder, image: Tensor, tasks: Sequence[str]) -> tuple[Step, Step]:
    """Ours and the plain module."""
    plain = Plain(copy.deepcopy(encoder), tasks)
    kinds = {task: Regression(names=["value"]) for task in tasks}
    ours = MultiTaskModel(kinds, HardSharing(encoder, tasks))
    return (
        step_of(ours, lambda: [value.sum() for value in ours({"image": image}).values()]),
        step_of(plain, lambda: [value.sum() for value in plain(image).values()]),
    )


def separate(encoder: Encoder, image: Tensor, count: int) -> Step:
    """Encoders one after the other."""
    encoders = nn.ModuleList(copy.deepcopy(encoder) for _ in range(count))
    return step_of(encoders, lambda: [one(Features(image))[-1].tensor.mean() for one in encoders])


def architecture(model: Architecture, image: Tensor) -> Step:
    """Last features of all tasks, and the penalties."""

    def losses() -> list[Tensor]:
        found = [pyramid[-1].tensor.mean() for pyramid in model(Features(image)).values()]
        return [*found, *model.penalties().values()]

    return step_of(model, losses)


def grouped(encoder: Encoder, image: Tensor, count: int) -> dict[str, Step]:
    """Experts of one shape as one pass under vmap, and SmallCNN's as one network of grouped convolutions."""
    experts = [copy.deepcopy(encoder) for _ in range(count)]
    parameters, buffers = torch.func.stack_module_state(experts)  # type: ignore[arg-type]
    buffers = {name: value.float() if name.endswith("num_batches_tracked") else value for name, value in buffers.items()}
    base = copy.deepcopy(encoder).to("meta")

    def one(parameter: dict[str, Tensor], buffer: dict[str, Tensor]) -> Tensor:
        levels: list[Features] = torch.func.functional_call(base, (parameter, buffer), (Features(image),))
        return levels[-1].tensor

    holder = nn.ParameterList(parameters.values())
    together = torch.func.vmap(one, randomness="different")
    found = {"vmap": step_of(holder, lambda: list(together(parameters, buffers).mean((1, 2, 3, 4))))}
    if type(encoder).__name__ == "SmallCNN":
        layers: list[nn.Module] = []
        for number, stage in enumerate(encoder.stages):
            old = stage.body.conv
            groups = count if number else 1
            width = old.out_channels * count
            entry = old.in_channels * groups
            layers += [nn.Conv2d(entry, width, 3, padding=1, bias=old.bias is not None, groups=groups)]
            layers += [nn.BatchNorm2d(width)] if hasattr(stage.body, "norm") else []
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        network = nn.Sequential(*layers)
        found["grouped convolutions"] = step_of(network, lambda: [part.mean() for part in network(image).chunk(count, 1)])
    return found


def compare(first: Step, second: Step, pairs: int) -> tuple[float, float, list[float]]:
    """Median milliseconds of both, and the quartiles of the ratio of pairs; who begins changes from pair to pair."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(-2, pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            start = time.process_time()
            (first, second)[which]()
            if number >= 0:
                times[which].append(1000 * (time.process_time() - start))
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return statistics.median(times[0]), statistics.median(times[1]), statistics.quantiles(ratios, n=4)


def row(name: str, pair: tuple[Step, Step], pairs: int) -> None:
    gc.collect()
    mine, theirs, (low, middle, high) = compare(*pair, pairs)
    print(f"| {name} | {mine:.1f} | {theirs:.1f} | {middle:.3f} ({low:.3f} … {high:.3f}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ResNet", help="class name or path")
    parser.add_argument("--encoder-args", type=json.loads, default={}, help="its options as JSON")
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--architectures", type=json.loads, default=ARCHITECTURES, help="JSON as the dictionary in this file")
    parser.add_argument("--only", nargs="+", help="parts of names; HardSharing is one")
    parser.add_argument("--grouped", action="store_true", help="ways to run experts of one shape instead of architectures")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    encoder: Encoder = build(mtl_lightning.encoders, options.encoder, options.encoder_args)
    image = torch.rand(options.batch, encoder.in_channels, options.size, options.size)
    tasks = [f"t{number}" for number in range(options.tasks)]

    def fresh() -> Encoder:
        return copy.deepcopy(encoder)

    def wanted(name: str) -> bool:
        return not options.only or any(part in name for part in options.only)

    print("| | ms | beside, ms | ratio: median (quartiles) |\n|---|---|---|---|")
    if options.grouped:
        for name, step in grouped(encoder, image, options.tasks).items():
            row(f"{name} / one after the other", (step, separate(encoder, image, options.tasks)), options.pairs)
        return
    if wanted("HardSharing"):
        row("HardSharing / plain module", hard_sharing(fresh(), image, tasks), options.pairs)
    for name, spec in options.architectures.items():
        if not wanted(name):
            continue
        init = {key: options.tasks if value == "tasks" else value for key, value in spec.get("init_args", {}).items()}
        model = build(mtl_lightning.architectures, spec["class_path"], init, fresh(), tasks)
        count = len(model.stages()[-1])
        label = f"{name} / {count} encoder{'s' if count > 1 else ''}"
        row(label, (architecture(model, image), separate(encoder, image, count)), options.pairs)


if __name__ == "__main__":
    main()
