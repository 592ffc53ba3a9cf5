"""What a step of a weighting method costs: beside equal weights, beside its bounds, beside LibMTL and TorchJD.

    python experiments/weighting_cost/measure.py

Everything that is compared runs in turns within each repeat; the table has medians of the repeats' ratios. A column is added for
a GPU in float32 and one in bfloat16 where there is a GPU. Results go to results.json, a column each, and from there to
results.md.
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from environments import Missing, Remote, Worker
from memory import ALLOCATOR, peak
from network import Shape
from ours import Bare, Ours
from paired import Row, Variant, interleave, milliseconds, ratios
from report import HERE, write

from mtl_lightning.gradients import EngineOptions
from mtl_lightning.weighting import FAMO, MGDA, Equal, NashMTL, PCGrad, UPGrad, Weighting

METHODS: dict[str, Callable[[], Weighting]] = {"UPGrad": UPGrad, "NashMTL": NashMTL, "MGDA": MGDA, "PCGrad": PCGrad}
EXACT = ("UPGrad", "NashMTL", "MGDA")
HEAVY = {"all heads together as heavy as the trunk": 48, "each head as heavy as the trunk": 88}
"""Widths of the heads' hidden layers."""
DEFAULT = {"chunk": None, "given": False, "gramian": False}
BEST = {
    f"chunk {chunk}{', Gramian by parameter' if gramian else ''}": {"chunk": chunk, "given": True, "gramian": gramian}
    for chunk in (1, 2, None)
    for gramian in (False, True)
}
"""Settings of TorchJD that may be its best: rows at a time (None is all), and how the Gramian is made."""
MEGABYTE = 1e6


class Bench:
    """Measures one column.

    Args:
        options: of the command line.
        device: where.
        autocast: in bfloat16.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device, autocast: bool) -> None:
        self.options, self.device, self.autocast = options, device, autocast
        self.rows = options.rows if device.type == "cpu" else options.gpu_rows
        self.settings = f"torch {torch.__version__}, Python {platform.python_version()}, {options.repeats} repeats, "
        self.settings += f"{options.clock if device.type == 'cpu' else 'wall'} time, {self.rows} rows"
        self.settings += f" of {options.side} × {options.side} pixels"

    def ours(self, shape: Shape, method: Weighting, cycle: int = 1, **engine: Any) -> Ours:
        return Ours(shape, method, self.device, self.autocast, cycle, EngineOptions(**engine))

    def time(self, variants: dict[str, Variant]) -> dict[str, list[float]]:
        cpu_time = self.options.clock == "cpu" and self.device.type == "cpu"
        return interleave(variants, self.options.repeats, self.options.seconds, cpu_time)

    def shape(self, tasks: int, **more: Any) -> Shape:
        return Shape(tasks, rows=self.rows, side=self.options.side, **more)

    def exact(self) -> Iterator[Row]:
        section = "Exact, over the shared parameters: step over Equal's"
        for tasks in (3, 10):
            shape = self.shape(tasks)
            variants: dict[str, Variant] = {"Equal": self.ours(shape, Equal()), "bare": Bare(shape, self.device, self.autocast)}
            times = self.time(variants | {name: self.ours(shape, METHODS[name]()) for name in EXACT})
            pairs = zip(times["bare/F"], times["bare/B"], strict=True)
            floor = statistics.median((forward + tasks * back) / (forward + back) for forward, back in pairs)
            for name in EXACT:
                note = f"floor {floor:.3f}, {milliseconds(times, 'bare/F', 'bare/B', 'Equal', name)}"
                target = "≤ 1.08 × (F + T·B)/(F + B)"
                yield Row(section, f"{name}, {tasks} light heads", target, ratios(times, name, "Equal"), 1.08 * floor, note=note)

    def heavy(self) -> Iterator[Row]:
        section = "Exact, dense heads, 3 tasks: step over Equal's"
        for what, width in HEAVY.items():
            shape = self.shape(3, head="heavy", width=width)
            equal = self.ours(shape, Equal())
            trunk, heads = equal.flops()
            times = self.time({"Equal": equal, "UPGrad": self.ours(shape, UPGrad())})
            note = f"forward FLOPs: trunk {trunk:.2f}e9, heads {heads:.2f}e9; {milliseconds(times, 'Equal', 'UPGrad')}"
            yield Row(section, f"UPGrad, {what}", "≤ 1.7", ratios(times, "UPGrad", "Equal"), 1.7, note=note)

    def features(self) -> Iterator[Row]:
        section = "At the features: step over Equal's"
        for tasks, limit in ((3, 1.10), (10, 1.15), (40, 1.3)):
            shape = self.shape(tasks)
            made = {name: self.ours(shape, METHODS[name](), gradients="features") for name in EXACT}
            times = self.time({"Equal": self.ours(shape, Equal()), **made})
            for name in EXACT:
                note = milliseconds(times, "Equal", name)
                yield Row(section, f"{name}, {tasks} light heads", f"≤ {limit}", ratios(times, name, "Equal"), limit, note=note)

    def famo(self) -> Iterator[Row]:
        # Passes without gradient: the whole batch once more, or a quarter of it before and after the step; without batch norm
        # and dropout the step's own pass is the one before.
        yield from self._famo("FAMO, 3 light heads: step over Equal's", self.shape(3), 0.5)
        yield from self._famo("The same without batch norm", replace(self.shape(3), norm=False), 0.25)

    def _famo(self, section: str, shape: Shape, quarters: float) -> Iterator[Row]:
        forms = {"FAMO": (FAMO(), 1.40, 1.0), "FAMO, fraction 0.25": (FAMO(fraction=0.25), 1.15, quarters)}
        made = {name: self.ours(shape, method) for name, (method, _, _) in forms.items()}
        times = self.time({"Equal": self.ours(shape, Equal()), "bare": Bare(shape, self.device, self.autocast), **made})
        share = statistics.median(f / (f + b) for f, b in zip(times["bare/F"], times["bare/B"], strict=True))
        for name, (_, limit, more) in forms.items():
            note = f"floor {1 + more * share:.3f}, {milliseconds(times, 'Equal', name)}"
            yield Row(section, name, f"≤ {limit:.2f}", ratios(times, name, "Equal"), limit, note=note)

    def every(self) -> Iterator[Row]:
        shape, tasks = self.shape(3), 3
        made = {k: self.ours(shape, UPGrad(), cycle=k, update_every=k) for k in (2, 4, 10)}
        named: dict[str, Variant] = {f"UPGrad, update_every {k}": variant for k, variant in made.items()}
        times = self.time({"Equal": self.ours(shape, Equal()), **named})
        for k, name in zip(made, named, strict=True):
            about = 1 + 2 * (tasks - 1) / (3 * k)
            section, target = "Weights kept for k steps, 3 light heads: step over Equal's", f"about 1 + 2(T−1)/(3k) = {about:.3f}"
            yield Row(section, name, target, ratios(times, name, "Equal"), note=milliseconds(times, "Equal", name))

    def peers(self) -> Iterator[Row]:
        for library, part in (("libmtl", self._libmtl), ("torchjd", self._torchjd)):
            try:
                worker = Worker(library, self.options.envs, self.options.threads)
            except Missing as reason:
                yield Row("Peers: their step over ours", library, "", [], note=f"skipped: {reason}")
                continue
            try:
                yield from part(worker)
            except Missing as reason:
                yield Row("Peers: their step over ours", library, "", [], note=f"stopped: {reason}")
            finally:
                worker.close()

    def _remote(self, worker: Worker, name: str, shape: Shape, method: str, setting: dict[str, Any], ours: Ours) -> Remote:
        ours.step()
        remote = Remote(worker, name, shape, method, self.device.type, self.autocast, setting)
        near = torch.allclose(torch.tensor(remote.first), torch.tensor(ours.first), rtol=5e-2 if self.autocast else 1e-3)
        if not near:
            raise Missing(f"{worker.library} begins with the losses {remote.first}, ours with {ours.first}: not the same network")
        return remote

    def _libmtl(self, worker: Worker) -> Iterator[Row]:
        for tasks, limit in ((3, 1.4), (10, 2.2)):
            for method, head in (("MGDA", "conv"), ("MGDA", "deep"), ("PCGrad", "conv")):
                shape, ours = self.shape(tasks, head=head), self.ours(self.shape(tasks, head=head), METHODS[method]())
                setting = {"mgda_gn": "none"} if method == "MGDA" else {}
                theirs = self._remote(worker, "theirs", shape, method, setting, ours)
                times = self.time({"ours": ours, "LibMTL": theirs})
                theirs.drop()
                what, values = f"{method}, {tasks} {head} heads", ratios(times, "LibMTL", "ours")
                section = f"LibMTL {worker.version}: its step over ours"
                note = f"by FLOPs {by_flops(ours, tasks):.2f}, {milliseconds(times, 'ours', 'LibMTL')}"
                yield Row(section, what, f"≥ {limit}", values, limit, least=True, note=note)

    def _torchjd(self, worker: Worker) -> Iterator[Row]:
        section = f"TorchJD {worker.version}: its step over ours"
        for tasks in (3, 10):
            for head in ("conv", "deep"):
                shape, ours = self.shape(tasks, head=head), self.ours(self.shape(tasks, head=head), UPGrad())
                settings = {"default": DEFAULT, **BEST}
                made = {name: self._remote(worker, name, shape, "UPGrad", value, ours) for name, value in settings.items()}
                times = self.time({"ours": ours, **made})
                best = min(BEST, key=lambda name: statistics.median(times[name]))
                for name, words in (("default", "its default"), (best, f"its best setting: {best}")):
                    what, note = f"UPGrad, {tasks} {head} heads, {words.split(':')[0]}", milliseconds(times, "ours", name)
                    note = f"{words}; {note}" if name == best else note
                    yield Row(section, what, "≥ 1", ratios(times, name, "ours"), 1.0, least=True, note=note)
                for remote in made.values():
                    remote.drop()

    def memory(self) -> Iterator[Row]:
        for tasks in (3, 10):
            shape = Shape(tasks, trunk="wide", width=self.options.width, rows=4, side=16)
            size = sum(parameter.numel() for parameter in Bare(shape, torch.device("cpu")).parameters)
            request = {
                "shape": asdict(shape),
                "device": self.device.type,
                "autocast": self.autocast,
                "threads": self.options.threads,
            }
            found = {}
            for name in ("Equal", "UPGrad"):
                found[name], reason = peak(request | {"method": name, "engine": {}})
                if not found[name]:
                    yield Row("Peak memory over Equal's", f"{name}, {tasks} tasks", "", [], note=f"skipped: {reason}")
                    return
            numbers = tasks * size * 4 / MEGABYTE
            more = (found["UPGrad"] - found["Equal"]) / MEGABYTE
            note = f"P = {size / 1e6:.1f}e6, Equal {found['Equal'] / MEGABYTE:.0f} MB"
            what, target = f"UPGrad, {tasks} tasks", "≤ T·P·4 bytes + 10 %"
            yield Row("Peak memory over Equal's", what, target, [more], 1.1 * numbers, note=note, unit=" MB")


def by_flops(ours: Ours, tasks: int) -> float:
    """T times T backward passes of heads for T, where a backward pass costs twice a forward pass."""
    trunk, heads = ours.flops()
    return (trunk * (1 + 2 * tasks) + heads * (1 + 2 * tasks)) / (trunk * (1 + 2 * tasks) + heads * 3)


SECTIONS = ("exact", "heavy", "features", "famo", "every", "peers", "memory")


def columns(options: argparse.Namespace) -> Iterator[tuple[str, Bench]]:
    if "cpu" in options.devices:
        name = f"CPU ({options.threads} thread{'s' if options.threads > 1 else ''})"
        yield name, Bench(options, torch.device("cpu"), False)
    if "cuda" in options.devices and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        yield f"{name}, float32", Bench(options, torch.device("cuda"), False)
        yield f"{name}, bfloat16", Bench(options, torch.device("cuda"), True)


def main() -> None:
    if not ALLOCATOR.items() <= os.environ.items():
        # Read when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="parts to measure")
    parser.add_argument(
        "--devices", nargs="+", choices=("cpu", "cuda"), default=("cpu", "cuda"), help="a GPU that is not there is left out"
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="least length of a timed run")
    clock = "of the CPU's columns: wall, or the time that the process was computing, for a machine that others use as well"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock)
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    parser.add_argument("--gpu-rows", type=int, default=256, help="of a batch on a GPU")
    parser.add_argument("--side", type=int, default=64, help="of its pictures, in pixels")
    parser.add_argument("--width", type=int, default=1056, help="of the trunk whose memory is measured: 1056 is 30e6 parameters")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--envs", type=Path, default=HERE / ".venv-peers", help="environments of the peers are made here")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and results.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for column, bench in columns(options):
        print(f"\n{column}", flush=True)
        for section in options.only:
            rows = []
            for row in getattr(bench, section)():
                print(f"{row.section} | {row.what} | {row.target} | {row.cell()}", flush=True)
                rows.append(row)
            write(options.out, column, bench.settings, section, rows)


if __name__ == "__main__":
    main()
