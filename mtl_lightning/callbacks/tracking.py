"""What a tracker gets beside the numbers: configuration, pictures of predictions, the final table and the report."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from mtl_lightning.analysis.pictures import Row, samples, take_row
from mtl_lightning.analysis.tables import Summary
from mtl_lightning.callbacks.report import spread
from mtl_lightning.callbacks.wandb_runs import KEY, wandb_loggers
from mtl_lightning.config import TrackingOptions
from mtl_lightning.storage import read_json, writing
from mtl_lightning.tasks.base import Task

AXIS = "trainer/global_step"
"""The x-axis that Lightning's logger sends with every value."""
BOX = ["x0", "y0", "x1", "y1"]

WAYS = {True: "max", False: "min", None: "last"}
"""What W&B keeps of a metric in a run's summary, by which way is better."""


class Tracking(Callback):
    """Sends to Weights & Biases what is no plain number; does nothing without a W&B logger.

    Args:
        config: the resolved configuration as YAML.
        folder: the run folder.
        options: which samples are shown, and how often.
        run: what identifies the W&B run, for checkpoints; None without one.
    """

    def __init__(self, config: str, folder: Path, options: TrackingOptions, run: Mapping[str, str] | None) -> None:
        self.config = config
        self.folder = Path(folder)
        self.options = options
        self.run = run
        self._rows: list[tuple[str, Row]] = []

    @rank_zero_only
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the configuration, and say which way is better for each metric."""
        for logger in wandb_loggers(trainer):
            logger.log_hyperparams(yaml.safe_load(self.config) | {"run_folder": str(self.folder)})
            best = {"val/score": "max", "val/loss": "min"}
            for name, task in pl_module.tasks.items():  # type: ignore[union-attr, operator]
                best |= {f"val/{name}/{key}": WAYS[way.higher_is_better] for key, way in task.measures.items()}
            for key, summary in best.items():
                logger.experiment.define_metric(key, step_metric=AXIS, summary=",".join(dict.fromkeys((summary, "last"))))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the W&B run."""
        if self.run is not None:
            checkpoint[KEY] = dict(self.run)

    def _due(self, trainer: pl.Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self.options.samples or not wandb_loggers(trainer):
            return False
        epoch = trainer.current_epoch
        return epoch % self.options.every_n_epochs == 0 or epoch + 1 == trainer.max_epochs

    @rank_zero_only
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the samples, the same ones every time."""
        if not self._due(trainer):
            return
        if batch_idx == 0:
            self._rows = []
        tasks: dict[str, Task] = dict(pl_module.tasks.items())  # type: ignore[union-attr, operator, arg-type]
        reads: Any = pl_module.inputs
        for row in spread(self.options.samples, int(trainer.num_val_batches[0]), batch_idx, len(batch)):
            self._rows.append((batch.ids[row], take_row(batch, outputs, tasks, row, reads)))

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Send the samples, or after the last validation the report."""
        tasks: dict[str, Task] = dict(pl_module.tasks.items())  # type: ignore[union-attr, operator, arg-type]
        if self._due(trainer) and self._rows:
            self._send_samples(trainer, tasks)
        elif trainer.state.fn == "validate":
            self.send_report(trainer)

    def _send_samples(self, trainer: pl.Trainer, tasks: Mapping[str, Task]) -> None:
        step = max(0, trainer.global_step - 1)
        names, rows = [name for name, _ in self._rows], [row for _, row in self._rows]
        with writing(self.folder, "make room, then go on with --ckpt_path last"), TemporaryDirectory() as folder:
            samples(rows, tasks, Path(folder) / "predictions.png")
            captions = [caption(name, row, tasks) for name, row in zip(names, rows, strict=True)]
            for logger in wandb_loggers(trainer):
                logger.log_image("samples/all_tasks", [f"{folder}/predictions.png"], step)
                if rows[0].text is not None:
                    told = [[row.text, words] for row, words in zip(rows, captions, strict=True)]
                    logger.log_table("samples/texts", ["text", "prediction"], told, step=step)
                    continue
                logger.log_image(
                    "samples/pictures",
                    [_picture(row) for row in rows],
                    step,
                    caption=captions,
                    masks=[masks(row, tasks) for row in rows],
                    boxes=[boxes(row, tasks) for row in rows],
                )

    @rank_zero_only
    def send_report(self, trainer: pl.Trainer) -> None:
        """Send the tables in ``summary.json`` and the pictures of the run folder."""
        file, step = self.folder / "summary.json", max(0, trainer.global_step - 1)
        for logger in wandb_loggers(trainer):
            summary: dict[str, Summary] = read_json(file)
            for split, part in summary.items():
                if "tasks" in part:
                    logger.log_table(f"summary/{split}", COLUMNS, table(part), step=step)
                    logger.experiment.summary.update(numbers(split, part))
            for picture in sorted(self.folder.glob("*.png")):
                logger.log_image(f"report/{picture.stem}", [str(picture)], step)

    @rank_zero_only
    def finish(self, trainer: pl.Trainer, code: int = 0) -> None:
        """End the W&B run, so that the next one of this process is another."""
        for logger in wandb_loggers(trainer):
            if logger.version is not None:
                logger.experiment.finish(exit_code=code)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Mark the run as failed."""
        self.finish(trainer, 1)


def _picture(row: Row) -> Image.Image:
    # Not the tensor: wandb takes numbers from 0 to 1 for bytes.
    pixels = (255 * row.image.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


BETTER = {True: "higher", False: "lower", None: "near"}
COLUMNS = ["task", "metric", "better", "model", "trivial", "labelled"]


def table(summary: Summary) -> list[list[Any]]:
    """A row a task and metric, as numbers."""
    return [
        [name, key, BETTER[measure["higher_is_better"]], task["metrics"][key], task["trivial"].get(key),
         task["labelled_elements"]]
        for name, task in summary["tasks"].items()
        for key, measure in task["measures"].items()
        if key in task["metrics"]
    ]  # fmt: skip


def numbers(split: str, summary: Summary) -> dict[str, float]:
    """The same for the run's summary: ``best/{split}/{task}/{metric}``, and ``trivial/…`` beside it."""
    found = {} if summary["score"] is None else {f"best/{split}/score": summary["score"]}
    for name, task in summary["tasks"].items():
        found |= {f"best/{split}/{name}/{key}": value for key, value in task["metrics"].items()}
        found |= {f"trivial/{split}/{name}/{key}": value for key, value in task["trivial"].items()}
    return found


def caption(name: str, row: Row, tasks: Mapping[str, Task]) -> str:
    """What is predicted, and what is true, in words: a line a task that is no picture."""
    lines = [name]
    for key, task in tasks.items():
        if not task.target.dense and key in row.predictions:
            truth = row.targets[key]
            told = "no label" if truth is None else f"truth: {_words(_truth(task, truth))}"
            lines.append(f"{key}: {_words(task.decode(row.predictions[key][None])[0])} ({told})")
    return "\n".join(lines)


def _truth(task: Task, target: Any) -> Any:
    names = task.names or []
    match task.target.kind:
        case "class":
            return names[int(target)]
        case "multilabel":
            return [name for name, value in zip(names, target.tolist(), strict=True) if value == 1]
        case _:
            return target.tolist()


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def masks(row: Row, tasks: Mapping[str, Task]) -> dict[str, Any] | None:
    """Masks that W&B lays over the picture; pixels without a label are a class of their own."""
    found: dict[str, Any] = {}
    for key, task in tasks.items():
        if task.target.kind != "mask" or key not in row.predictions:
            continue
        labels = dict(enumerate(task.names or ())) | {len(task.names or ()): "no label"}
        found[key] = {"mask_data": task.decode(row.predictions[key][None])[0].numpy(), "class_labels": labels}
        if (truth := row.targets[key]) is not None:
            found[f"{key}_truth"] = {"mask_data": truth.where(truth >= 0, len(labels) - 1).numpy(), "class_labels": labels}
    return found or None


def boxes(row: Row, tasks: Mapping[str, Task]) -> dict[str, Any] | None:
    """Boxes that W&B draws into the picture, for tasks of four numbers x0, y0, x1, y1."""
    found: dict[str, Any] = {}
    for position, (key, task) in enumerate(tasks.items()):
        if list(task.names or ()) != BOX or key not in row.predictions:
            continue
        truth = row.targets[key]
        told = {key: task.decode(row.predictions[key][None])[0], f"{key}_truth": None if truth is None else truth.tolist()}
        for name, corners in told.items():
            if corners is not None and all(corner == corner for corner in corners):
                x0, y0, x1, y1 = (min(1.0, max(0.0, corner)) for corner in corners)
                place = {"minX": min(x0, x1), "maxX": max(x0, x1), "minY": min(y0, y1), "maxY": max(y0, y1)}
                box = {"position": place, "class_id": position, "box_caption": name}
                found[name] = {"box_data": [box], "class_labels": {position: key}}
    return found or None
