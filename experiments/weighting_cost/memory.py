"""Peak memory of a few steps in a process of its own: prints bytes.

    python memory.py '{"shape": {…}, "method": "UPGrad", "device": "cpu", "autocast": false, "engine": {…}}'

On the CPU it is the most resident memory that the kernel has seen while steps were taken, on a GPU the most that tensors took.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mtl_lightning.analysis.check.step import _reset_peak, _status

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
"""Has glibc keep memory that was freed, for what is timed: else up to a fifth of a step is page faults, more or fewer by what
else a process happens to hold. Peak memory is measured without it."""


def measure(request: dict[str, Any]) -> int:
    from network import Shape
    from ours import Ours

    import mtl_lightning.weighting as weightings
    from mtl_lightning.gradients import EngineOptions

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    method, options = getattr(weightings, request["method"])(), EngineOptions(**request["engine"])
    ours = Ours(Shape(**request["shape"]), method, device, request["autocast"], options=options)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif not _reset_peak():
        raise SystemExit("the kernel does not let this process forget its highest resident memory (/proc/self/clear_refs)")
    ours.run(3)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def peak(request: dict[str, Any]) -> tuple[int, str]:
    """In a new process: bytes, or 0 and why not."""
    command = [sys.executable, str(Path(__file__)), json.dumps(request)]
    plain = {key: value for key, value in os.environ.items() if key not in ALLOCATOR}
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
    if done.returncode:
        return 0, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return int(done.stdout.split()[-1]), ""


if __name__ == "__main__":
    print(measure(json.loads(sys.argv[1])))
