"""Architectures of equal size against one network a task, on scenes and on Multi-Fashion+MNIST: table.md and delta.png.

    python experiments/architectures/run.py --root PATH/TO/data

Each run is `fit`, then `test` of the checkpoint that is best on the validation split, in a process of its own, as a user would
type them. A run whose results are there is not repeated; one that was cut off starts anew.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from results import draw, table
from sizes import HERE, MATCHED, OTHERS, matched_widths, networks, read
from times import step_times

PROGRAM = "import json, sys; from mtl_lightning.main import main; [main(words) for words in json.loads(sys.argv[1])]"
DATA = ("scenes", "fashion")


class Job(NamedTuple):
    """One training.

    Attributes:
        data: scenes or fashion.
        what: an architecture, or the task that is trained alone.
        seed: of the run.
        words: of the command line.
    """

    data: str
    what: str
    seed: int
    words: list[str]


def run(job: Job, runs: Path) -> str | None:
    """Train and test; returns what went wrong."""
    folder = runs / f"{job.data}-{job.what}-{job.seed}"
    done = folder / "done.json"
    if done.exists():
        same = json.loads(done.read_text()) == job.words
        return None if same else f"{folder} was run with other settings; take another --out, or remove it"
    shutil.rmtree(folder, ignore_errors=True)
    words = [
        "--config",
        str(HERE / f"{job.data}.yaml"),
        "--name",
        folder.name,
        "--runs",
        str(runs),
        "--seed_everything",
        str(job.seed),
    ]
    call = [sys.executable, "-c", PROGRAM, json.dumps([[command, *words, *job.words] for command in ("fit", "test")])]
    paths = os.pathsep.join([str(HERE.parent / "multi_fashion"), os.environ.get("PYTHONPATH", "")])
    start = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ended = subprocess.run(call, capture_output=True, text=True, cwd=HERE, env=environment, check=False)
    if ended.returncode:
        return f"{folder.name}:\n{ended.stdout[-2000:]}{ended.stderr[-3000:]}"
    done.write_text(json.dumps(job.words))
    print(f"{folder.name} ({time.monotonic() - start:.0f} s)", flush=True)
    return None


def jobs_of(data: str, seeds: list[int], extra: list[str]) -> list[Job]:
    """All trainings on one data set; the first seed of everything comes first."""
    config = read(data)
    base = config["model"]["encoder"]["init_args"]["widths"]
    found = []
    for place, seed in enumerate(seeds):
        for task in config["model"]["tasks"]:
            found.append(Job(data, task, seed, ["--model.only", json.dumps([task]), *extra]))
        for name, options in (MATCHED if place else MATCHED | OTHERS).items():
            widths = matched_widths(networks(config), name, base)
            words = ["--model.encoder.init_args.widths", json.dumps(widths)]
            words += ["--model.architecture", json.dumps({"class_path": name, "init_args": options}), *extra]
            found.append(Job(data, name, seed, words))
    return found


def main() -> None:
    """Run everything, then table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Further arguments go to every run (--model.optimizer.init_args.lr 0.002).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="the folder with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/architectures"), help="folder of runs, table and picture")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, help="take so many training overlays of Multi-Fashion only")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    arguments, extra = parser.parse_known_args()
    out = arguments.out.resolve()
    fashion = ["--data.init_args.root", str(arguments.root.resolve())]
    fashion += [] if arguments.rows is None else ["--data.init_args.rows", str(arguments.rows)]
    jobs = [
        job
        for data in arguments.data
        for job in jobs_of(data, arguments.seeds, [*extra, *(fashion if data == "fashion" else [])])
    ]
    jobs.sort(key=lambda job: arguments.seeds.index(job.seed))
    start = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        faults = [fault for fault in pool.map(partial(run, runs=out / "runs"), jobs) if fault]
    took = time.monotonic() - start
    # Alone on the machine, when everything else is done.
    cost = {data: step_times(data, out / f"steps-{data}.json") for data in arguments.data}
    rows = table(out / "runs", arguments.data, arguments.seeds, cost)
    (out / "table.md").write_text(rows.text, encoding="utf-8")
    draw(rows.points, out / "delta.png")
    print(f"{rows.text}\n{len(jobs)} runs, {arguments.jobs} at a time: {took:.0f} s")
    if faults:
        raise SystemExit("\n\n".join(["Not everything was run:", *faults]))


if __name__ == "__main__":
    main()
