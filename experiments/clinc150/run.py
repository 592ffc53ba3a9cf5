"""One network for domain, intent and scope of a request against one each; few intent labels; encoders; weightings.

    python experiments/clinc150/run.py --root PATH/TO/clinc150

Each run is `fit`, then `test` of the last epoch, as a user would type them, one thread each, on data_small.json. Not of the best
epoch: with few intents known, and 100 validation rows out of scope, that would be chosen by other tasks than the one looked at. A
run whose results are there is not repeated. Prints the table and draws results.png beside this file.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "clinc150.yaml"
METRICS = {"domain": "accuracy", "intent": "accuracy", "out_of_scope": "auroc"}
TOGETHER = "together"
HIDDEN = 0.9
ENCODERS = {
    "BagOfWords": {"hidden": [128]},
    "TextGRU": {"hidden": 96},
    "TextTransformer": {"layers": 2, "max_length": 32, "dropout": 0.2},
}


class Job(NamedTuple):
    """One run; the defaults are the first row's."""

    seed: int
    tasks: str = TOGETHER
    hidden: float = 0.0
    encoder: str = "BagOfWords"
    weighting: str = "Equal"

    @property
    def name(self) -> str:
        return f"{self.encoder}-{self.weighting}-{self.tasks}-{int(100 * self.hidden)}-{self.seed}"


def main_jobs(seed: int) -> list[Job]:
    alone = [Job(seed, task) for task in METRICS]
    return [Job(seed), *alone, Job(seed, hidden=HIDDEN), Job(seed, "intent", HIDDEN)]


def further_jobs(seed: int) -> list[Job]:
    weightings = [Job(seed, hidden=hidden, weighting=w) for hidden in (0.0, HIDDEN) for w in ("UW", "PCGrad", "NashMTL")]
    return weightings + [Job(seed, hidden=hidden, encoder=e) for hidden in (0.0, HIDDEN) for e in list(ENCODERS)[1:]]


def run(job: Job, root: str, runs: Path, extra: list[str]) -> None:
    import torch

    from mtl_lightning.main import main

    torch.set_num_threads(1)
    folder = runs / job.name
    if (folder / "done").exists():
        return
    encoder = {"vocabulary": 6000, "width": 128, "dropout": 0.3} | ENCODERS[job.encoder]
    words = ["--config", str(CONFIG), "--name", job.name, "--runs", str(runs), "--seed_everything", str(job.seed)]
    words += ["--data.init_args.root", root, "--data.init_args.file", "data_small.json", "--data.init_args.batch_size", "128"]
    words += ["--model.encoder", json.dumps({"class_path": job.encoder, "init_args": encoder})]
    words += [
        "--model.weighting",
        job.weighting,
        "--trainer.max_epochs",
        "12",
        "--trainer.check_val_every_n_epoch",
        "4",
        "--trainer.accelerator",
        "cpu",
    ]
    words += ["--data.init_args.hidden", json.dumps({"intent": job.hidden}), *extra]
    words += [] if job.tasks == TOGETHER else ["--model.only", json.dumps([job.tasks])]
    with contextlib.redirect_stdout(io.StringIO()):
        if not (folder / "summary.json").exists():
            main(["fit", *words])
        main(["test", *words, "--ckpt_path", "last"])
    (folder / "done").touch()
    print(job.name, flush=True)


def values(runs: Path, job: Job, seeds: list[int], task: str) -> list[float]:
    found = []
    for seed in seeds:
        file = runs / job._replace(seed=seed).name / "summary.json"
        if (file.parent / "done").exists():
            found.append(json.loads(file.read_text())["test"]["tasks"][task]["metrics"][METRICS[task]])
    return found


def cell(found: list[float]) -> str:
    if not found:
        return ""
    return f"{statistics.mean(found):.3f}" + (f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else "")


def rows(runs: Path, seeds: list[int]) -> list[tuple[str, str, str, dict[str, list[float]]]]:
    """Intent labels, encoder, how, and the values of each task."""
    listed: list[tuple[str, str, str, dict[str, list[float]]]] = []
    for hidden in (0.0, HIDDEN):
        labels = "all" if not hidden else f"{round(100 * (1 - hidden))} %"
        alone = {task: values(runs, Job(0, task, hidden * (task == "intent")), seeds, task) for task in METRICS}
        listed.append((labels, "BagOfWords", "a network each", alone))
        for job in [Job(0, hidden=hidden), *(job for job in further_jobs(0) if job.hidden == hidden)]:
            listed.append((labels, job.encoder, job.weighting, {task: values(runs, job, seeds, task) for task in METRICS}))
    return [row for row in listed if any(row[3].values())]


def table(listed: list[tuple[str, str, str, dict[str, list[float]]]]) -> str:
    lines = ["| intent labels | encoder | weighting | domain, accuracy | intent, accuracy | out of scope, AUROC |"]
    lines.append("|---|---|---|---:|---:|---:|")
    for labels, encoder, how, found in listed:
        lines.append(f"| {labels} | {encoder} | {how} | " + " | ".join(cell(found[task]) for task in METRICS) + " |")
    return "\n".join(lines)


def draw(listed: list[tuple[str, str, str, dict[str, list[float]]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, labels in zip(axes, dict.fromkeys(row[0] for row in listed), strict=True):
        part = [row for row in listed if row[0] == labels][::-1]
        names = [f"{encoder}, {how}" for _, encoder, how, _ in part]
        for height, (_, _, how, found) in enumerate(part):
            color = "#bf8700" if how == "a network each" else "#0969da"
            intent = found["intent"]
            place.plot(intent, [height] * len(intent), "o", color=color, alpha=0.5, markersize=4)
            if intent:
                place.plot([statistics.mean(intent)], [height], "|", color=color, markersize=14, markeredgewidth=2)
        place.set_yticks(range(len(names)), names, fontsize=8)
        place.set_title(f"intent accuracy, {labels} of the intent labels", fontsize=9, loc="left")
        place.grid(axis="x", color="#d0d7de", linewidth=0.5)
        place.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            place.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with data_small.json and domains.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/clinc150"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the main rows; the others take the first")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--show", action="store_true", help="run nothing; tell what is there")
    arguments, extra = parser.parse_known_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    jobs = [job for seed in arguments.seeds for job in main_jobs(seed)] + further_jobs(arguments.seeds[0])
    if arguments.show:
        jobs = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(run, job, arguments.root, arguments.runs, extra) for job in jobs]:
            done.result()
    listed = rows(arguments.runs, arguments.seeds)
    print(table(listed))
    draw(listed, HERE / "results.png")


if __name__ == "__main__":
    main()
