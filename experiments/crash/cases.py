"""What is trained: small networks for three tasks, in which each two options meet."""

from typing import NamedTuple

CONFIG = "tests/conf/tiny.yaml"


class Case(NamedTuple):
    """Attributes: what it is called, and its arguments of the command line."""

    name: str
    args: list[str]


class Option(NamedTuple):
    """Attributes: what it is called without and with it, and its arguments then."""

    without: str
    given: str
    off: list[str]
    on: list[str]


COMMON = [
    f"--config={CONFIG}",
    "--data.init_args.hidden={color: 0.5, level: 0.3, mask: 0.95}",  # batches in which no row has a mask
    "--data.train_transforms+=torchvision.transforms.v2.RandomHorizontalFlip",
    "--data.train_transforms+=torchvision.transforms.v2.ColorJitter",
    "--data.train_transforms.init_args.brightness=0.3",
    "--model.tasks.color.init_args.head=MLP",
    "--model.tasks.color.init_args.head.init_args.dropout=0.3",
    "--trainer.max_epochs=4",
    "--checkpoint.every_n_steps=2",
    "--trainer.callbacks+=experiments.crash.child.Watch",
]
STEPWISE = ["--model.scheduler.scheduler=WarmupCosine", "--model.scheduler.interval=step"]
PLATEAU = [
    "--model.scheduler.scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau",
    "--model.scheduler.scheduler.init_args.patience=0",
    "--model.scheduler.scheduler.init_args.threshold=0.9",
    "--model.scheduler.interval=epoch",
    "--model.scheduler.monitor=val/loss",
]
OPTIONS = [
    Option("no worker", "2 workers", ["--data.num_workers=0"], ["--data.num_workers=2"]),
    Option("", "accumulation 2", [], ["--trainer.accumulate_grad_batches=2"]),
    Option("", "schedule", [], STEPWISE),
    Option("", "thawing", [], ["--model.freeze.stages=1", "--model.freeze.epochs=2"]),
    Option("fp32", "bf16", [], ["--trainer.precision=bf16-mixed"]),
]
WEIGHTINGS = {
    "Equal": (0, 0, 0, 0, 0),
    "NashMTL": (1, 0, 1, 0, 1),
    "UPGrad": (0, 1, 1, 0, 0),
    "FAMO": (0, 0, 0, 1, 1),
    "DWA": (1, 1, 0, 0, 0),
    "GradVac": (0, 0, 1, 0, 1),
    "DBMTL": (1, 0, 0, 1, 0),
}
"""Each with the options it is given; a second case has just the others, so that it meets each option and its opposite."""
FURTHER = [
    Case(
        "MoDo, learnt branches, MixUp, validation in mid-epoch",
        ["--model.weighting=MoDo", "--model.architecture=LTB", "--data.mixing=MixUp",
         "--trainer.val_check_interval=4"],
    ),
    Case(
        "RLW, experts with gates, gradients watched, plateau, stopped early",
        ["--model.weighting=RLW", "--model.architecture=MMoE", "--model.engine.watch_every=2", *PLATEAU,
         "--trainer.callbacks+={class_path: EarlyStopping, init_args: {monitor: val/loss, mode: max, patience: 1}}"],
    ),
]  # fmt: skip


def chosen(weighting: str, options: tuple[int, ...]) -> Case:
    names, args = [weighting], [f"--model.weighting={weighting}"]
    for option, on in zip(OPTIONS, options, strict=True):
        names.append(option.given if on else option.without)
        args += option.on if on else option.off
    return Case(", ".join(filter(None, names)), args)


def every_case() -> list[Case]:
    """Of each weighting two, and some more."""
    crossed = [options for weighting in WEIGHTINGS.items() for options in (weighting, _others(*weighting))]
    return [*(chosen(*options) for options in crossed), *FURTHER]


def _others(weighting: str, options: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    return weighting, tuple(1 - on for on in options)
