"""How long a manifest of a million rows takes to load, and how much memory it holds: prints the table of README.md."""

import argparse
import csv
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CASES = {
    "pandas": "`pandas.read_csv`, all cells as text",
    "table": "`read_table`",
    "pictures": "`ManifestDataModule`: 3 tasks, all cells and files checked",
    "texts": "`TextManifestDataModule`: the same tasks",
    "worker": "the same pictures: what a worker that has read 2,000 rows at random adds",
}
PICTURES = 1000


def write(folder: Path, rows: int) -> None:
    """A manifest of that many rows, whose pictures repeat."""
    (folder / "images").mkdir()
    for number in range(PICTURES):
        Image.new("RGB", (4, 4)).save(folder / f"images/picture_{number:06d}.png")
    random = np.random.default_rng(0)
    breed, age, fluffy = random.integers(0, 37, rows), random.random(rows) * 20, random.random(rows) < 0.5
    shown = random.random((3, rows)) < 0.4
    with (folder / "all.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text", "split", "breed", "age", "fluffy"])
        for row in range(rows):
            cells = (f"breed_{breed[row]}", f"{age[row]:.4f}", int(fluffy[row]))
            labels = [cell if seen else "" for cell, seen in zip(cells, shown[:, row], strict=True)]
            split = "val" if row % PICTURES == 0 else "train"
            writer.writerow([f"images/picture_{row % PICTURES:06d}.png", f"the text of row {row}", split, *labels])


def memory(key: str) -> float:
    """MB of this process: VmRSS now, VmHWM at its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) / 1000


def private() -> float:
    """MB that only this process has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1000


def module(folder: Path, case: str) -> Any:
    """A data module of the manifest, set up."""
    from mtl_lightning.data import ManifestDataModule
    from mtl_lightning.data.splits import Split
    from mtl_lightning.data.text.manifest import TextManifestDataModule
    from mtl_lightning.tasks import Classification, MultiLabel, Regression

    tasks = {"breed": Classification(), "age": Regression(), "fluffy": MultiLabel()}
    common: dict[str, Any] = {"root": str(folder), "manifest": "all.csv", "split": Split(column="split")}
    if case == "texts":
        return TextManifestDataModule(**common).datasets(tasks, ("train", "val"))  # type: ignore[arg-type]
    data = ManifestDataModule(**common, duplicates="allow", num_workers=0)
    return data.datasets(tasks, ("train", "val"))  # type: ignore[arg-type]


def measured(case: str, folder: Path) -> dict[str, float]:
    """CPU seconds, MB that stay, and MB at the peak above what imports took."""
    import pandas as pd

    import mtl_lightning.data.text.manifest
    from mtl_lightning.data.table import read_table

    mtl_lightning.data.ManifestDataModule  # noqa: B018  imported on first use
    gc.collect()
    base, start = memory("VmRSS"), time.process_time()
    if case == "pandas":
        kept: Any = pd.read_csv(folder / "all.csv", dtype=str, keep_default_na=False)
    elif case == "table":
        kept = read_table(folder / "all.csv", "all.csv")
    else:
        kept = module(folder, case)
    seconds = time.process_time() - start
    gc.collect()
    if case == "worker":
        return forked(kept["train"])
    result = {"seconds": seconds, "stays": memory("VmRSS") - base, "peak": memory("VmHWM") - base}
    assert len(kept)
    return result


def forked(dataset: Sequence[Any]) -> dict[str, float]:
    """What a forked process needs for itself, as workers are."""
    read, write = os.pipe()
    if os.fork() == 0:
        gc.collect()
        before, start = private(), time.process_time()
        for row in np.random.default_rng(1).integers(0, len(dataset), 2000).tolist():
            dataset[row]
        os.write(write, json.dumps({"seconds": time.process_time() - start, "stays": private() - before}).encode())
        os._exit(0)
    os.wait()
    return {"peak": 0.0, **json.loads(os.read(read, 4096))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, help="used by itself: case and folder")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], Path(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.rows)
        size = (Path(folder) / "all.csv").stat().st_size / 1e6
        print(f"{options.rows:,} rows, {size:.0f} MB of CSV\n\n| what | CPU seconds | MB at the peak | MB that stay |")
        print("|---|---|---|---|")
        for case, title in CASES.items():
            # A process for each, so that the peak is its own.
            done = subprocess.run([sys.executable, __file__, "--one", case, folder], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            values = json.loads(done.stdout.splitlines()[-1])
            peak = f"{values['peak']:.0f}" if values["peak"] else ""
            print(f"| {title} | {values['seconds']:.1f} | {peak} | {values['stays']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
