"""Thirteen weighting methods and single-task networks on Multi-Fashion+MNIST, over seeds: table.md and scatter.png.

    python experiments/multi_fashion/run.py --root PATH/TO/data --jobs 16 --accelerator gpu

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

from results import scatter, table

HERE = Path(__file__).resolve().parent
METHODS = ["Equal", "UW", "DWA", "FAMO", "PCGrad", "CAGrad", "MGDA", "IMTL"]
METHODS += ["NashMTL", "FairGrad", "AlignedMTL", "UPGrad", "DBMTL"]
TASKS = ("garment", "digit")
PROGRAM = "import json, sys; from mtl_lightning.main import main; [main(words) for words in json.loads(sys.argv[1])]"
"""Both commands in one process: imports and libraries of a GPU are loaded once."""


def run(job: tuple[str, int], runs: Path, settings: list[str]) -> str | None:
    """Train and test; returns what went wrong."""
    what, seed = job
    folder = runs / f"{what}-{seed}"
    done = folder / "done.json"
    if done.exists():
        if json.loads(done.read_text()) == settings:
            return None
        return f"{folder} was run with other settings; take another --out, or remove it"
    shutil.rmtree(folder, ignore_errors=True)
    words = ["--config", str(HERE / "config.yaml"), "--name", folder.name, "--runs", str(runs), "--seed_everything", str(seed)]
    words += settings + (["--model.only", json.dumps([what])] if what in TASKS else ["--model.weighting", what])
    call = [sys.executable, "-c", PROGRAM, json.dumps([["fit", *words], ["test", *words]])]
    start = time.monotonic()
    ended = subprocess.run(call, capture_output=True, text=True, cwd=HERE, env={"OMP_NUM_THREADS": "1"} | os.environ, check=False)
    if ended.returncode:
        return f"{folder.name}:\n{ended.stdout[-2000:]}{ended.stderr[-3000:]}"
    done.write_text(json.dumps(settings))
    print(f"{folder.name} ({time.monotonic() - start:.0f} s)", flush=True)
    return None


def main() -> None:
    """Run everything, then table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Further arguments go to every run (--model.optimizer.init_args.lr 0.002).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="the folder with MNIST/raw and FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/multi_fashion"), help="folder of runs, table and picture")
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rows", type=int, help="take so many training pictures only")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    arguments, extra = parser.parse_known_args()
    out = arguments.out.resolve()
    settings = ["--data.init_args.root", str(arguments.root.resolve()), "--trainer.max_epochs", str(arguments.epochs)]
    # Every second epoch is validated, and the last one.
    every = 2 if arguments.epochs % 2 == 0 else 1
    settings += ["--trainer.check_val_every_n_epoch", str(every), "--trainer.accelerator", arguments.accelerator]
    settings += [] if arguments.rows is None else ["--data.init_args.rows", str(arguments.rows)]
    # Those that take longest come first, so that none is left alone at the end.
    jobs = [(what, seed) for what in [*reversed(arguments.methods), *TASKS] for seed in arguments.seeds]
    start = time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        faults = [fault for fault in pool.map(partial(run, runs=out / "runs", settings=settings + extra), jobs) if fault]
    text, points, bases = table(out / "runs", arguments.methods, TASKS, arguments.seeds)
    (out / "table.md").write_text(text, encoding="utf-8")
    scatter(points, bases, TASKS, out / "scatter.png")
    print(f"{text}\n{len(jobs)} runs, {arguments.jobs} at a time: {time.monotonic() - start:.0f} s")
    if faults:
        raise SystemExit("\n\n".join(["Not everything was run:", *faults]))


if __name__ == "__main__":
    main()
