"""``check``: everything about data and network that can be known before training, in one report."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from mtl_lightning.analysis.check import page
from mtl_lightning.analysis.check.pictures import contact_sheet, distributions
from mtl_lightning.analysis.check.step import StepCost, measure
from mtl_lightning.analysis.check.survey import Survey, survey
from mtl_lightning.analysis.model_summary import ModelSummary
from mtl_lightning.analysis.model_tables import model_page, show_network
from mtl_lightning.errors import DataError, MTLError
from mtl_lightning.monitor import check_tunable
from mtl_lightning.storage import replace_text, writing
from mtl_lightning.tasks.base import Task

THEN = "make room or set runs to another folder, and run check again"


def check(trainer: Trainer, module: Any, datamodule: Any, pictures: int, shown: int) -> None:
    """Examine all rows, draw what the network will see, take a few steps, and write ``report.md``.

    Args:
        trainer: with a :class:`~mtl_lightning.analysis.check.step.StepProbe`; its ``default_root_dir`` takes the report.
        module: not changed on disk.
        datamodule: of the run.
        pictures: samples on the contact sheet.
        shown: faults on the screen and in the report; ``faults.txt`` has all.

    Raises:
        DataError: there are faults, and ``on_error`` is not ``skip``.
        MTLError: the first training step would fail.
    """
    folder = Path(trainer.default_root_dir)
    tasks: dict[str, Task] = dict(module.tasks.items())
    datamodule.take(module)
    datamodule.check_inputs(tasks)
    found = survey(datamodule.examined(tasks), tasks)
    report = Report(folder, found, tasks, shown, datamodule.on_error == "skip" and not found.stopping)
    report.data(datamodule.image_size is not None)
    with writing(folder, THEN):
        if distributions(found.tallies, folder / "labels.png"):
            report.add("", "![labels](labels.png)")
    problem: MTLError | None = None
    try:
        datamodule.check_balance(tasks)
        datamodule.adopt(_usable(found))
        check_tunable(module.tasks, datamodule.counts().get("val", {}))
        report.add("Training samples as the network gets them", _sheet(datamodule, tasks, pictures, folder))
        report.write()  # before the step, which may need more memory than there is
        report.cost(measure(trainer, module, datamodule))
    except torch.OutOfMemoryError as error:
        problem = DataError(
            f"a training step of data.init_args.batch_size {datamodule.batch_size} does not fit into the device's memory "
            f"({str(error).splitlines()[0]}); take fewer or smaller pictures"
        )
    except MTLError as error:
        problem = error
    if problem is not None:
        report.add("What stops a run", str(problem))
    report.write()
    report.show()
    if problem is not None:
        raise problem
    if found.faults and not report.skip:
        advice = "mend them, or set data.init_args.on_error to skip to leave such rows out"
        if found.stopping:
            advice = (
                f"mend them; {found.stopping} rows are in no split or repeat another's picture, which stops a run in any case"
            )
        raise DataError(f"{found.bad} rows have {len(found.faults)} faults, all listed in {folder / 'faults.txt'}; {advice}")


def _usable(found: Survey) -> Mapping[str, Any]:
    splits = {split: dataset for split, dataset in found.splits.items() if split in ("train", "val", "test")}
    if "train" not in splits:
        raise DataError("no training row is left without a fault" if found.faults else "the train split is empty")
    return splits


def _sheet(datamodule: Any, tasks: Mapping[str, Task], number: int, folder: Path) -> str:
    loader = datamodule.train_dataloader()
    batches = []
    for batch in loader:
        batches.append(batch)
        if len(batches) >= math.ceil(number / max(1, datamodule.batch_size)):
            break
    with writing(folder, THEN):
        drawn = contact_sheet(batches, tasks, number, folder / "contact_sheet.png", datamodule.chosen)
    return (
        f"The first {drawn} of the first epoch, after `train_transforms` and `image_size`.\n\n![contact sheet](contact_sheet.png)"
    )


class Report:
    """``report.md`` and ``faults.txt``, and the few lines for the screen.

    Args:
        folder: where.
        found: by the pass over all rows.
        tasks: by name.
        shown: faults that are listed.
        skip: whether bad rows are left out of runs.
    """

    def __init__(self, folder: Path, found: Survey, tasks: Mapping[str, Task], shown: int, skip: bool) -> None:
        self.folder, self.found, self.tasks, self.shown, self.skip = folder, found, tasks, shown, skip
        self._parts: list[str] = [f"# {folder.name}", self.verdict]
        self._lines: list[str] = []
        self._network: ModelSummary | None = None

    @property
    def verdict(self) -> str:
        """Faults in a sentence."""
        rows = f"{sum(self.found.rows.values())} rows were read"
        if not self.found.faults:
            return f"{rows}, no fault was found."
        left = "they are left out (`on_error: skip`)" if self.skip else "a run would stop at them"
        return f"{rows}, {self.found.bad} of them have {len(self.found.faults)} faults: {left}."

    def add(self, title: str, text: str | None) -> None:
        """A section; None is left out."""
        if text:
            self._parts += [f"## {title}", text] if title else [text]

    def data(self, fixed_size: bool) -> None:
        """The sections about rows and labels."""
        found = self.found
        notes = page.notes(found, self.tasks, fixed_size)
        self.add("Faults", page.fault_list(found, self.shown))
        self.add("Labelled rows", page.label_table(found))
        self.add("Worth a look", "\n".join(f"- {note}" for note in notes))
        balances = [text for name, splits in found.tallies.items() if (text := page.balance(name, splits))]
        self.add("Balance", "\n\n".join(balances))
        self.add("Ranges", page.ranges(found.tallies))
        self.add("Labelled pixels", page.coverage(found.tallies))
        self.add("Pictures as stored", page.sizes(found) if any(found.sizes.values()) else None)
        self._lines = [f"  {fault.where}: {fault.problem}" for fault in found.faults[: self.shown]]
        if len(found.faults) > self.shown:
            self._lines.append(f"  … and {len(found.faults) - self.shown} more in {self.folder / 'faults.txt'}")
        self._lines += [f"note: {note}" for note in notes]

    def cost(self, cost: StepCost) -> None:
        """The sections about the network and its training."""
        if cost.network is not None:
            self.add("Network", f"{model_page(cost.network)}\n\n![model](model.png)")
            self._network = cost.network
        self.add("Training step", page.cost_tables(cost))
        peak = "" if cost.peak is None else f" Peak memory {cost.peak / 2**20:.0f} MiB."
        total = sum(size for size, _ in cost.parameters.values())
        self._lines.append(f"{total:,} parameters. {page.speed(cost)}{peak}")

    def write(self) -> None:
        """Both files."""
        if self.found.faults:
            lines = [f"{fault.where}: {fault.problem}" for fault in self.found.faults]
            replace_text(self.folder / "faults.txt", "\n".join(lines) + "\n", THEN)
        replace_text(self.folder / "report.md", "\n\n".join(self._parts) + "\n", THEN)

    def show(self) -> None:
        """On the screen."""
        if self._network is not None:
            show_network(self._network, f"{self.folder.name}: the network")
        print("\n".join([self.verdict, *self._lines, f"The report is {self.folder / 'report.md'}"]), flush=True)
