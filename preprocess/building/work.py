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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.files import TEMPORARY_SUFFIX, sync_to_disk, write_atomically
from preprocess.manifest import ShardEntry
from preprocess.output_folder import HELDOUT_FOLDER, WORK_FOLDER, shard_name

PLAN_NAME = "plan.json"


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What one block gave; entries are None where it has no document.

    Attributes:
        files: [source, description] of the files that the block has text of.
        duplicates_sha256: digest of the list of duplicates that were left out; "" without one.
        num_replaced: documents in which bytes that are not UTF-8 became U+FFFD.
        source_counts: [part ("kept" or "heldout"), source, documents, sentences, tokens].
    """

    block: int
    kept: ShardEntry | None
    heldout: ShardEntry | None
    input_sha256: str
    files: list[list[Any]]
    duplicates_sha256: str = ""
    dropped: dict[str, int] = field(default_factory=dict)
    num_replaced: int = 0
    source_counts: list[list[Any]] = field(default_factory=list)


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

    def digests_path(self, block: int, input_sha256: str) -> Path:
        """Return where the digests of a block's documents are: pass 1 of finding duplicates."""
        return self.path / "digests" / f"block-{block:05d}-{input_sha256[:16]}.npy"

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
        temporary = self.path / f"{PLAN_NAME}.{os.getpid()}-{os.urandom(4).hex()}{TEMPORARY_SUFFIX}"
        temporary.write_bytes(_render(plan))
        sync_to_disk(temporary)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, self.path / PLAN_NAME)  # unlike a rename, this fails if the name is taken
        temporary.unlink()
        found = self.read_plan()
        assert found is not None
        return found


def _render(plan: dict[str, Any]) -> bytes:
    return (json.dumps(plan, sort_keys=True, indent=1) + "\n").encode()


def digest_of_file(path: Path) -> str:
    """Return the sha256 (hex) of a small file; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
