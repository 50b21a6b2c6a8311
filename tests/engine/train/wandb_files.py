"""What W&B's library left in its offline files; it has no reader of its own, and the format is LevelDB's log."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768
SECONDS_TO_WRITE = 20.0
FULL, LAST = 1, 4


def records(file: Path) -> Iterator[Any]:
    """The records of an offline file, in order."""
    from wandb.proto import wandb_internal_pb2

    data, position, whole = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + HEADER])
        whole += data[position + HEADER : position + HEADER + size]
        position += HEADER + size
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def offline_files(run: Path) -> list[Path]:
    """The files of a run folder's starts, oldest first; W&B's own process may still be writing the end of one."""
    found = sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    deadline = time.monotonic() + SECONDS_TO_WRITE
    while not all(map(ends, found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def ends(file: Path) -> list[Any]:
    """The records with which W&B marks a start as ended: one, when all is written."""
    return [record.exit for record in records(file) if record.WhichOneof("record_type") == "exit"]


def history(file: Path) -> list[dict[str, Any]]:
    """The logged rows of an offline file, without W&B's own figures."""
    rows = []
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def config(file: Path) -> dict[str, Any]:
    """The settings that an offline file begins with."""
    (first,) = (record.run for record in records(file) if record.WhichOneof("record_type") == "run")
    return {item.key: json.loads(item.value_json) for item in first.config.update}
