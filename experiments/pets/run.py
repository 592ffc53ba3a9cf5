"""Partial against full labels, together against alone, on the pets: every run over several seeds, then a table.

    python experiments/pets/run.py --root PATH/TO/pets

Each run is `fit`, then `test` on the official test split and `validate` with all labels (the test split has no head boxes), as a
user would type them. Both take the last epoch's weights and not the best epoch's: of 60 validation pictures some carry only 21
labels of a task, too few to select by, and head boxes are judged on that split. A run whose results are there is not repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "pets.yaml"
LABELS = {"partial": "pets_partial.csv", "full": "pets.csv"}
TASKS = {"breed": ("test", "accuracy"), "species": ("test", "accuracy"), "mask": ("test", "miou"), "head_box": ("val", "mae")}
ALL = "together"


def name(labels: str, tasks: str, seed: int) -> str:
    return f"{labels}-{tasks}-{seed}"


def run(job: tuple[str, str, int], root: str, runs: Path, extra: list[str]) -> None:
    labels, tasks, seed = job
    folder = runs / name(*job)
    if not (folder / "done").exists():
        common = ["--config", str(CONFIG), "--name", folder.name, "--runs", str(runs), "--seed_everything", str(seed)]
        common += ["--data.init_args.root", root, *extra]
        common += [] if tasks == ALL else ["--model.only", json.dumps([tasks])]
        steps = [("fit", LABELS[labels]), ("validate", LABELS["full"])]
        steps += [("test", LABELS["full"])] if tasks != "head_box" else []
        for command, manifest in steps:
            call = [sys.executable, "-m", "mtl_lightning", command, *common, "--data.init_args.manifest", manifest]
            call += ["--ckpt_path", "last"] if command != "fit" else []
            done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(call)}\n{done.stdout}\n{done.stderr}")
        (folder / "done").touch()
    print(folder.name, flush=True)


def value(runs: Path, labels: str, tasks: str, seed: int, task: str) -> tuple[float, float]:
    split, metric = TASKS[task]
    result = json.loads((runs / name(labels, tasks, seed) / "summary.json").read_text())[split]["tasks"][task]
    return result["metrics"][metric], result["trivial"][metric]


def cell(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def table(runs: Path, seeds: list[int]) -> str:
    lines = [
        "| task | metric | trivial | partial, alone | partial, together | full, alone | full, together |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, (split, metric) in TASKS.items():
        cells = [
            cell([value(runs, labels, tasks, seed, task)[0] for seed in seeds]) for labels in LABELS for tasks in (task, ALL)
        ]
        trivial = cell([value(runs, "full", task, seed, task)[1] for seed in seeds])
        arrow = "↓" if metric == "mae" else "↑"
        lines.append(f"| {task} | {metric} {arrow} ({split}) | {trivial.split(' ')[0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with pets.csv")
    parser.add_argument("--runs", type=Path, default=Path("runs/pets"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    arguments, extra = parser.parse_known_args()
    jobs = [(labels, tasks, seed) for seed in arguments.seeds for labels in LABELS for tasks in (ALL, *TASKS)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job: run(job, arguments.root, arguments.runs, extra), jobs))
    print(table(arguments.runs, arguments.seeds))


if __name__ == "__main__":
    main()
