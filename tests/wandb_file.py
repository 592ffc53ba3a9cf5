"""Reads the file of an offline W&B run: a log in LevelDB's format of wandb's own protocol buffers."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What a file holds."""

    id: str = ""
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None


def records(path: Path) -> Iterator[bytes]:
    """The entries of a log: blocks of 32 KiB; each piece has a checksum, a length and whether more follows."""
    data = path.read_bytes()
    place, parts = HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + HEADER])
        if kind == 0:
            place += BLOCK - place % BLOCK
            continue
        piece = data[place + HEADER : place + HEADER + length]
        parts = piece if kind in (FULL, FIRST) else parts + piece
        if kind in (FULL, LAST):
            yield parts
        place += HEADER + length


def read(path: Path) -> OfflineRun:
    """Everything of one file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()

    def pairs(items: Any) -> dict[str, Any]:
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    for data in records(path):
        record = Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run.id, run.project, run.name = record.run.run_id, record.run.project, record.run.display_name
                run.config |= pairs(record.run.config.update)
            case "config":
                run.config |= pairs(record.config.update)
            case "history":
                run.history.append(pairs(record.history.item))
            case "summary":
                run.summary |= pairs(record.summary.update)
            case "metric":
                run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                run.exit_code = record.exit.exit_code
    return run
