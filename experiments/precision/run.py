"""Every weighting in float32, bf16, fp16 with a loss scaler, channels_last and compiled, on rendered scenes.

    python experiments/precision/run.py --runs runs/precision
    python experiments/precision/run.py --runs runs/precision --only UW NashMTL --ways float32 compile

Each run is `fit` of configs/scenes.yaml made small, one thread each. A run whose results are there is not repeated. Writes
results.json and table.md beside this file, from all results there are.
"""

import argparse
import contextlib
import csv
import io
import json
import math
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SMALL = [
    "--data.init_args.train_size=256",
    "--data.init_args.val_size=128",
    "--data.init_args.test_size=0",
    "--data.init_args.size=32",
    "--data.init_args.batch_size=32",
    "--data.init_args.num_workers=0",
    "--model.encoder.init_args.widths=[8, 16, 32]",
    "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks+=experiments.precision.clock.Clock",
]
WAYS = {
    "float32": [],
    "bf16": ["--trainer.precision=bf16-mixed"],
    "fp16": ["--trainer.plugins+=tests.fp16.HalfOnCpu"],
    "channels_last": ["--model.channels_last=true"],
    "compile": ["--model.compile={}"],
}
PLAIN = [way for way in WAYS if way != "compile"]


def run(job: tuple[str, str], runs: str) -> None:
    """One fit; its numbers go to a file in its folder."""
    import torch
    from matplotlib.figure import Figure

    from experiments.precision import clock
    from mtl_lightning.main import main

    method, way = job
    file = Path(runs) / f"{method}-{way}.json"
    if file.exists():
        return
    torch.set_num_threads(1)
    Figure.savefig = lambda figure, path, **options: Path(path).touch()  # nobody looks at the pictures
    os.environ.pop("MTL_LIGHTNING_RUN", None)
    clock.times.clear()
    weighting = {"Combined": "{class_path: Combined, init_args: {losses: UW, gradients: PCGrad}}"}.get(method, method)
    words = ["fit", "--config", str(ROOT / "configs/scenes.yaml"), *SMALL, *WAYS[way], f"--model.weighting={weighting}"]
    said, folder = io.StringIO(), Path(runs) / f"{method}-{way}"
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main([*words, "--runs", runs, f"--name={folder.name}"])
    except SystemExit:
        print(f"{method} {way}: {said.getvalue()[-400:]}", flush=True)
        return
    newest = max(Path(runs).glob(f"{folder.name}*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open() as lines:
        rows = list(csv.DictReader(lines))
    last = {row["name"]: float(row["value"]) for row in rows}
    bad = sum(not math.isfinite(float(row["value"])) for row in rows if not row["name"].startswith("gradient/cosine"))
    steps = clock.times[4:] or clock.times
    losses = {name: last[f"val/{name}/loss"] for name in ("shape", "present", "count", "segmentation", "depth", "normals")}
    skipped = last.get("gradient/skipped", 0.0) + sum(value for name, value in last.items() if name.startswith("bad/"))
    found = {"score": last["val/score"], "losses": losses, "bad": bad, "skipped": skipped, "step": statistics.median(steps)}
    file.write_text(json.dumps(found))
    print(f"{method} {way}: score {found['score']:.3f}", flush=True)


def table(results: dict[str, dict[str, dict]]) -> str:
    """Scores, their differences from float32, the largest change of a loss, what was not finite or skipped, step times."""
    lines = [
        "| method | float32 | "
        + " | ".join(f"{way}: score, largest loss change, step" for way in list(WAYS)[1:])
        + " | NaN, skipped |",
        "|---" * (len(WAYS) + 2) + "|",
    ]
    for method, ways in sorted(results.items()):
        if "float32" not in ways:
            continue
        base, cells, faults = ways["float32"], [], 0.0
        for way in list(WAYS)[1:]:
            if way not in ways:
                cells.append("")
                continue
            found = ways[way]
            change = max(abs(found["losses"][name] / value - 1) for name, value in base["losses"].items())
            ratio = found["step"] / base["step"]
            cells.append(f"{found['score'] - base['score']:+.3f}, {100 * change:.1f} %, {ratio:.2f}x")
        faults = sum(found["bad"] + found["skipped"] for found in ways.values())
        lines.append(f"| {method} | {base['score']:.3f} | " + " | ".join(cells) + f" | {faults:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    from tests.methods import methods

    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", default="runs/precision")
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--ways", nargs="*", default=PLAIN, choices=list(WAYS))
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    Path(options.runs).mkdir(parents=True, exist_ok=True)
    jobs = [(method, way) for method in options.only or methods() for way in options.ways]
    with ProcessPoolExecutor(options.processes) as pool:
        for done in [pool.submit(run, job, options.runs) for job in jobs]:
            done.result()
    results: dict[str, dict[str, dict]] = {}
    for file in sorted(Path(options.runs).glob("*.json")):
        method, _, way = file.stem.partition("-")
        results.setdefault(method, {})[way] = json.loads(file.read_text())
    (HERE / "results.json").write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    (HERE / "table.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
