"""Samples a second of each stage from file to batch, and of whole loaders: prints a table of README.md."""

import argparse
import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2

from mtl_lightning.batch import Collate
from mtl_lightning.data import CutMix, ManifestDataModule, MixUp, RandAugmentWithLabels, ScenesDataModule
from mtl_lightning.data.base import MultiTaskDataModule
from mtl_lightning.data.cache import ImageCache
from mtl_lightning.data.columns import Column
from mtl_lightning.data.seeding import sample_randomness
from mtl_lightning.data.splits import Split
from mtl_lightning.data.transforms import compose
from mtl_lightning.tasks import Classification, Depth, MultiLabel, Regression, SemanticSegmentation, SurfaceNormals
from mtl_lightning.tasks.base import Task

CROP = {"size": [96, 96], "scale": (0.3, 1.0), "ratio": (0.7, 1.4)}


def pets(options: argparse.Namespace, **more: Any) -> MultiTaskDataModule:
    """Photographs with breed, species, mask and head box, brought to 96 x 96 by the transforms of configs/pets.yaml."""
    tasks = {
        "breed": Classification(),
        "species": Classification(),
        "mask": SemanticSegmentation(classes=["background", "pet"]),
        "head_box": Regression(),
    }
    columns: dict[str, Any] = {
        "mask": Column(column="mask", values={1: "pet", 2: "background"}, ignore=[3]),
        "head_box": Column(box=["head_xmin", "head_ymin", "head_xmax", "head_ymax"]),
    }
    resize, crop = v2.Resize([112, 112]), v2.RandomResizedCrop(**CROP)
    colors = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    return ready(
        ManifestDataModule(
            options.pets, options.manifest, columns=columns, split=Split(val_fraction=0.2), verify=0, image_size=96,
            train_transforms=[resize, crop, v2.RandomHorizontalFlip(), colors], batch_size=16, **more,
        ),
        tasks,
    )  # fmt: skip


def scenes(options: argparse.Namespace, **more: Any) -> MultiTaskDataModule:
    """Rendered scenes of 64 x 64 with six tasks, in memory."""
    tasks = {
        "shape": Classification(),
        "present": MultiLabel(),
        "count": Regression(),
        "segmentation": SemanticSegmentation(classes=["background", "ground", "sphere", "box", "cylinder", "cone"]),
        "depth": Depth(),
        "normals": SurfaceNormals(),
    }
    flip = [v2.RandomHorizontalFlip()]
    return ready(ScenesDataModule(400, 8, 8, hidden=0.5, train_transforms=flip, batch_size=16, **more), tasks)


def ready(data: MultiTaskDataModule, tasks: dict[str, Task]) -> MultiTaskDataModule:
    for name, task in tasks.items():
        task.name = name
    data.tasks = tasks
    with contextlib.redirect_stdout(io.StringIO()):
        data.setup("fit")
    return data


def rates(work: Callable[[], int], repeats: int, clock: Callable[[], float]) -> tuple[float, float, float]:
    """Lowest, median and highest number of samples a second; the first run does not count."""
    work()
    found = []
    for _ in range(repeats):
        start = clock()
        rows = work()
        found.append(rows / (clock() - start))
    return min(found), statistics.median(found), max(found)


def loader(data: MultiTaskDataModule) -> Callable[[], int]:
    batches, number = data.train_dataloader(), iter(range(10**6))

    def epoch() -> int:
        batches.order.set_epoch(next(number))
        return sum(len(batch) for batch in batches)

    return epoch


def stages(make: Callable[..., MultiTaskDataModule], options: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """What to measure, by the name of its line."""
    data = make(options, num_workers=0)
    train, rows = data.splits["train"], range(min(options.rows, len(data.splits["train"])))
    samples = [train[row] for row in rows]
    transform = compose(data.transforms["train"], data.image_size)
    finished = [transform(sample) for sample in samples]
    specs = {name: task.target for name, task in (data.tasks or {}).items()}
    collate = Collate(specs)
    groups = [finished[start : start + 16] for start in range(0, len(finished), 16)]
    batches = [collate(group) for group in groups]

    def each(function: Callable[[Any], Any], things: Any) -> Callable[[], int]:
        def work() -> int:
            for thing in things:
                function(thing)
            return len(rows)

        return work

    def moved(change: Any) -> Callable[[Any], Any]:
        def run(sample: Any) -> Any:
            with sample_randomness(0, 0, 0):
                return change(sample)

        return run

    drawn = compose([RandAugmentWithLabels()], data.image_size)
    parts = {"row (decode picture and labels)": each(train.__getitem__, rows)}
    if isinstance(data, ManifestDataModule):
        kept = make(options, num_workers=0, cache=ImageCache("ram", 2.0))
        kept.train_dataloader()
        parts["row, picture from the cache"] = each(kept.splits["train"].__getitem__, rows)
    parts |= {
        "transforms of the config": each(moved(transform), samples),
        "RandAugmentWithLabels": each(moved(drawn), samples),
        "collate": each(collate, groups),
        "MixUp": each(lambda batch: MixUp()(batch, specs, (0, 0, 0)), batches),
        "CutMix (numbers: blend)": each(lambda batch: CutMix(probability=1.0, numbers="blend")(batch, specs, (0, 0, 0)), batches),
    }
    for workers in options.workers:
        line = f"loader, {workers} workers" if workers else "loader without workers"
        parts[line] = loader(make(options, num_workers=workers))
        if isinstance(data, ManifestDataModule):
            for where in ("ram", "disk"):
                cache = ImageCache(where, 2.0, options.cache if where == "disk" else None)  # type: ignore[arg-type]
                parts[f"{line}, cache on {where}"] = loader(make(options, num_workers=workers, cache=cache))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pets", help="folder of the pets; left out, scenes alone are measured")
    parser.add_argument("--manifest", default="pets.csv")
    parser.add_argument("--cache", default="cache", help="folder of the cache on disk")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for name, make in {"pets": pets, "scenes": scenes}.items():
        if name == "pets" and options.pets is None:
            continue
        print(f"\n{name}, {cores} cores, median of {options.repeats} (lowest to highest)\n\n| stage | samples/s |\n|---|---|")
        for stage, work in stages(make, options).items():
            # Workers by the clock; what one process does by the time it computes, which others on the machine hardly change.
            clock = time.process_time if "without" in stage or "loader" not in stage else time.perf_counter
            low, median, high = rates(work, options.repeats, clock)
            print(f"| {stage} | {median:.0f} ({low:.0f} to {high:.0f}) |", flush=True)


if __name__ == "__main__":
    main()
