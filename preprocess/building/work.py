"""The state of an unfinished run, in the folder ``.work`` of its output: the plan, and a record of each block done.

A block counts as done when its record is in place, which is written after its shards. So whatever stops a run, what is
there is whole, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.files import TEMPORARY_SUFFIX, sync_to_disk, write_atomically
from preprocess.manifest import ShardEntry
from preprocess.output_folder import HELDOUT_FOLDER, WORK_FOLDER, shard_name

PLAN_NAME = "plan.json"
PLAN_TRIES = 20
PLAN_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class BlockFile:
    """A file that a block has bytes of.

    Attributes:
        source: index of its source.
        description: what decides its documents, apart from the block's own bytes.
        stored_bytes: its size on disk when the block was made.
        modified_ns: time of its last change then.
    """

    source: int
    description: dict[str, Any]
    stored_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class SourceCounts:
    """What a block gave of one source to one part: "kept" or "heldout"."""

    part: str
    source: int
    documents: int
    sentences: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What one block gave; entries are None where it has no document.

    Attributes:
        files: those that the block has bytes of.
        duplicates_sha256: digest of the list of duplicates that were left out; "" without one.
        num_replaced: documents in which bytes that are not UTF-8 became U+FFFD.
    """

    block: int
    kept: ShardEntry | None
    heldout: ShardEntry | None
    input_sha256: str
    files: list[BlockFile]
    duplicates_sha256: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    num_replaced: int = 0
    source_counts: list[SourceCounts] = field(default_factory=list)


class WorkFolder:
    """Paths and files of an unfinished run.

    Args:
        output: the folder that the shards are written to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output / WORK_FOLDER

    @property
    def spool(self) -> Path:
        """Folder for standard input."""
        return self.path / "spool"

    def record_path(self, block: int) -> Path:
        """Return where the record of a block is."""
        return self.path / f"block-{block:05d}.json"

    def digests_path(self, block: int, text_key: str) -> Path:
        """Return where the digests of a block's documents are: pass 1 of finding duplicates."""
        return self.path / "digests" / f"block-{block:05d}-{text_key[:16]}.npy"

    def known_digests(self, block: int) -> list[Path]:
        """Return the files of digests of a block: one for each text that it has had."""
        return sorted((self.path / "digests").glob(f"block-{block:05d}-*.npy"))

    def all_digests(self) -> dict[int, list[Path]]:
        """Return the files of digests of all blocks that have some; the folder is read once."""
        found: dict[int, list[Path]] = {}
        for path in sorted((self.path / "digests").glob("block-*-*.npy")):
            found.setdefault(int(path.name.split("-")[1]), []).append(path)
        return found

    def duplicates_path(self, block: int) -> Path:
        """Return where the list of a block's duplicates is."""
        return self.path / "duplicates" / f"block-{block:05d}.npy"

    def dropped_path(self, block: int) -> Path:
        """Return where the dropped texts of a block are."""
        return self.path / "dropped" / f"block-{block:05d}.jsonl"

    def make(self) -> None:
        """Make the folders."""
        for name in ("digests", "duplicates", "dropped"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    def write_record(self, record: BlockRecord) -> None:
        """Write a record: its block is done."""
        write_atomically(self.record_path(record.block), (json.dumps(dataclasses.asdict(record)) + "\n").encode())

    def read_record(self, block: int) -> BlockRecord | None:
        """Return the record of a block, None if it is not done or its record is damaged."""
        try:
            fields = json.loads(self.record_path(block).read_bytes())
            for part in ("kept", "heldout"):
                fields[part] = ShardEntry(**fields[part]) if fields[part] else None
            fields["files"] = [BlockFile(**file) for file in fields["files"]]
            fields["source_counts"] = [SourceCounts(**counts) for counts in fields["source_counts"]]
            return BlockRecord(**fields)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def forget(self, block: int) -> None:
        """Remove a block's record, and then its shards and dropped texts."""
        self.record_path(block).unlink(missing_ok=True)
        self.dropped_path(block).unlink(missing_ok=True)
        for folder in (self.output, self.output / HELDOUT_FOLDER):
            (folder / shard_name(block)).unlink(missing_ok=True)

    def forget_digests(self) -> None:
        """Remove the digests of all blocks."""
        for paths in self.all_digests().values():
            for path in paths:
                path.unlink(missing_ok=True)

    def is_there(self, record: BlockRecord, with_dropped: bool) -> bool:
        """Whether the files that a record tells of are in place, by name and size.

        Args:
            with_dropped: whether dropped texts were to be written aside.
        """
        for entry, folder in ((record.kept, self.output), (record.heldout, self.output / HELDOUT_FOLDER)):
            path = folder / entry.file if entry else None
            if entry and path and not (path.is_file() and path.stat().st_size == entry.num_bytes):
                return False
        return not with_dropped or self.dropped_path(record.block).is_file()

    def blocks_on_disk(self) -> list[int]:
        """Return the blocks that have a record, or a file of a shard, whatever plan they are from."""
        found = [int(path.stem.removeprefix("block-")) for path in self.path.glob("block-*.json")]
        for folder in (self.output, self.output / HELDOUT_FOLDER):
            found += [int(path.name.partition(".")[0].removeprefix("shard-")) for path in folder.glob("shard-*.h5")]
        return sorted(set(found))

    def read_plan(self) -> dict[str, Any] | None:
        """Return the plan of the unfinished run, None if there is none.

        Raises:
            ValueError: if it is damaged.
        """
        path = self.path / PLAN_NAME
        try:
            return json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete {self.output} to start again") from None

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Write the plan, in place of an older one."""
        write_atomically(self.path / PLAN_NAME, _render(plan))

    def offer_plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Write the plan unless another run was first; return the one that is there."""
        path = self.path / PLAN_NAME
        temporary = self.path / f"{PLAN_NAME}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
        try:
            temporary.write_bytes(_render(plan))
            sync_to_disk(temporary)
            os.link(temporary, path)  # unlike a rename, this fails if the name is taken
        except FileExistsError:
            pass
        except OSError:  # a full disk, or a file system without hard links
            _write_new(path, _render(plan))
        finally:
            temporary.unlink(missing_ok=True)
        found = self._read_plan_of_other()
        assert found is not None
        return found

    def _read_plan_of_other(self) -> dict[str, Any] | None:
        """Read the plan; without hard links another run may be about to write it."""
        for _ in range(PLAN_TRIES):
            with contextlib.suppress(ValueError):
                return self.read_plan()
            time.sleep(PLAN_SECONDS)
        return self.read_plan()


def _write_new(path: Path, data: bytes) -> None:
    """Write a file unless it is there."""
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise


def _render(plan: dict[str, Any]) -> bytes:
    return (json.dumps(plan, sort_keys=True, indent=1) + "\n").encode()


def digest_of_file(path: Path) -> str:
    """Return the sha256 (hex) of a small file; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
