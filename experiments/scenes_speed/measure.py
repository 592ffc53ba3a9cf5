"""How many scenes one core renders in a second, and what a row costs from the cache: prints the table of README.md."""

import argparse
import time

from mtl_lightning.data.quantities import QUANTITIES
from mtl_lightning.data.scenes import ScenesDataset


def measure(size: int, rows: int) -> tuple[float, float, float, float]:
    """Scenes per second of CPU time (best and median of five parts), rows per second from the cache, KB per row."""
    dataset = ScenesDataset("train", rows, (size, size), 3, 0, {name: name for name in QUANTITIES}, {}, cache=False)
    dataset.scene(0)
    rates = []
    for part in range(5):
        start = time.process_time()
        for row in range(part * rows // 5, (part + 1) * rows // 5):
            dataset.scene(row)
        rates.append(rows / 5 / (time.process_time() - start))
    cached = ScenesDataset("train", rows // 5, (size, size), 3, 0, {name: name for name in QUANTITIES}, {})
    start = time.process_time()
    for row in range(len(cached)):
        cached[row]
    reads = len(cached) / (time.process_time() - start)
    return max(rates), sorted(rates)[2], reads, cached.nbytes / len(cached) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    print("| size | rendered / s, median | rendered / s, best | read from the cache / s | cache per row |")
    print("|---|---|---|---|---|")
    for size in options.sizes:
        best, median, reads, memory = measure(size, options.rows)
        print(f"| {size} x {size} | {median:.0f} | {best:.0f} | {reads:.0f} | {memory:.0f} KB |")


if __name__ == "__main__":
    main()
