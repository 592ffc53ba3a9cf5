"""Every weighting method on the two-objective toy problem: trajectories.png and table.md.

    python experiments/toy_pareto/run.py

All methods go down side by side from all starts, by Adam. It takes three to four minutes of one core.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from draw import figure
from methods import METHODS, Run
from problem import STARTS, Array, distance, objectives, pareto_set
from torch import nn

HERE = Path(__file__).parent
LR = 1e-3
KEPT = 20
"""A point in so many is kept of a trajectory."""
NEAR = 0.1
"""What counts as having reached the Pareto set, which is 14 long."""


def descend(names: list[str], scale: float, steps: int, stride: int) -> Array:
    """Trajectories [methods, starts, kept, 2].

    A step stands for ``stride`` steps of the published Adam: its learning rate is as much larger, its memories as much shorter.
    """
    lr, betas = LR * stride, (0.9**stride, 0.999**stride)
    runs = [Run(METHODS[name](), scale, lr) for name in names for _ in STARTS]
    points = nn.Parameter(torch.from_numpy(np.tile(STARTS, (len(names), 1))))
    optimizer = torch.optim.Adam([points, *(parameter for run in runs for parameter in run.learns)], lr=lr, betas=betas)
    points.grad = torch.zeros_like(points)
    places, directions = points.detach().numpy(), points.grad.numpy()  # the same memory
    kept = []
    for step in range(steps):
        values, gradients = objectives(places, scale)
        if step % KEPT == 0:
            kept.append(places.copy())
        for index, run in enumerate(runs):
            directions[index] = run.direction(places[index], values[index], gradients[index])
        optimizer.step()
        after = objectives(places, scale)[0]
        for index, run in enumerate(runs):
            if run.revisits:
                run.after(after[index])
    kept.append(places.copy())
    return np.stack(kept, 1).reshape(len(names), len(STARTS), -1, 2)


def table(names: list[str], trajectories: Array, front: Array) -> str:
    """Where each method ended, from each start; bold is off the Pareto set."""
    heading = " | ".join(f"from ({x:g}, {y:g})" for x, y in STARTS)
    lines = [f"| method | {heading} | reached | imbalance |", "|---|" + "---:|" * (len(STARTS) + 2)]
    for name, trajectory in zip(names, trajectories, strict=True):
        ends = trajectory[:, -1]
        far = distance(ends, front)
        there = far < NEAR
        cells = [f"{end[0] / 7:+.2f}" if good else f"**{gap:.1f} off**" for end, gap, good in zip(ends, far, there, strict=True)]
        imbalance = f"{np.abs(ends[there, 0]).mean() / 7:.2f}" if there.any() else "-"
        lines.append(f"| {name} | {' | '.join(cells)} | {there.sum()} of {len(ends)} | {imbalance} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="of the first objective")
    parser.add_argument("--steps", type=int, default=40_000, help="of the published Adam, learning rate 0.001")
    parser.add_argument("--stride", type=int, default=10, help="take so many of them as one; 1 is as published")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the picture and the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, front, names = time.monotonic(), pareto_set(), arguments.methods
    trajectories = descend(names, arguments.scale, arguments.steps // arguments.stride, arguments.stride)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = table(names, trajectories, front)
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    figure(names, trajectories, front, arguments.scale, arguments.out / "trajectories.png")
    print(f"{text}\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
