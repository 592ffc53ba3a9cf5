"""What a training step costs: forward and backward of all architectures in turns, beside hard sharing."""

import json
import statistics
import time
from pathlib import Path

import torch
from sizes import MATCHED, OTHERS, matched_widths, networks, parameters, read

REPEATS = 21
SHAPES = {"fashion": (128, 1, 36, 36), "scenes": (32, 3, 48, 64)}


def step_times(data: str, file: Path) -> dict[str, dict[str, float]]:
    """Parameters of the network and step time over hard sharing's, by architecture: medians of pairs, kept in a file.

    Args:
        data: scenes or fashion.
        file: that has them already, or takes them.
    """
    if file.exists():
        kept: dict[str, dict[str, float]] = json.loads(file.read_text())
        return kept
    config, build = read(data), networks(read(data))
    base = config["model"]["encoder"]["init_args"]["widths"]
    models = {name: build(name, matched_widths(build, name, base)).train() for name in MATCHED | OTHERS}
    torch.manual_seed(0)
    torch.set_num_threads(1)
    picture = torch.rand(SHAPES[data])
    spent: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(REPEATS + 2):
        for name, model in models.items():
            model.architecture.set_epoch(0)
            start = time.process_time()
            loss = sum(prediction.square().mean() for prediction in model({"image": picture}).values())
            loss = sum(model.architecture.penalties().values(), loss)
            loss.backward()  # type: ignore[union-attr, no-untyped-call]
            if repeat >= 2:
                spent[name].append(time.process_time() - start)
            model.zero_grad()
    found = {}
    for name, seconds in spent.items():
        pairs = [one / other for one, other in zip(seconds, spent["HardSharing"], strict=True)]
        found[name] = {"parameters": parameters(models[name]), "ratio": statistics.median(pairs)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found
