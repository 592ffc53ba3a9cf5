"""Peak memory of `test` on splits of growing size, and how long `--help` takes beside importing Lightning.

    python experiments/step_cost/memory.py

Every figure is of a whole process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "configs" / "scenes.yaml"
SCENES = "--data.init_args"


def run(*words: str) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(message.decode())
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    ours = ["-m", "mtl_lightning"]
    with tempfile.TemporaryDirectory() as folder:
        common = ["--config", str(CONFIG), "--runs", folder, f"{SCENES}.num_workers=0", f"{SCENES}.cache=false"]
        common += [f"{SCENES}.train_size=64", "--trainer.accelerator=cpu"]
        run(*ours, "fit", *common, f"{SCENES}.val_size=16", "--trainer.max_epochs=1")
        print("| rows of the test split | peak memory of `test`, MB |\n|---|---|")
        for size in options.sizes:
            print(f"| {size} | {run(*ours, 'test', *common, f'{SCENES}.test_size={size}')[1]:.0f} |", flush=True)
    commands = {"import lightning.pytorch": ["-c", "import lightning.pytorch"], "--help": [*ours, "--help"]}
    commands["fit --help"] = [*ours, "fit", "--help"]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, words in commands.items():
            times[name].append(run(*words)[0])
    first = times["import lightning.pytorch"]
    print("\n| | seconds, median | more than the import, median of pairs |\n|---|---|---|")
    for name, values in times.items():
        more = statistics.median(value - other for value, other in zip(values, first, strict=True))
        print(f"| `{name}` | {statistics.median(values):.2f} | {more:.2f} |")


if __name__ == "__main__":
    main()
