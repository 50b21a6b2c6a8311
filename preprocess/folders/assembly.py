"""Shard folders made of the shards of others: what merge and split have in common."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.files import write_atomically
from preprocess.folders.counts import SourceCounts, count_problems, totals, with_counts
from preprocess.folders.rewriting import RewriteJob, Rewritten, Task
from preprocess.folders.verification import has_heldout
from preprocess.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    Source,
    check_file,
    read_manifest,
    write_manifest,
)
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, claim
from preprocess.progress import progress_bar
from preprocess.shards import COMPRESSIONS, ShardReader
from preprocess.workers import run_blocks

DEFAULT_COMPRESSION = "zstd"


@dataclass(frozen=True)
class ShardFolder:
    """A finished folder: its manifest, and that of its held-out documents if it has any."""

    main: Manifest
    heldout: Manifest | None

    @property
    def optional(self) -> tuple[str, ...]:
        """The optional datasets of its shards."""
        for manifest in (self.main, self.heldout):
            if manifest is not None and manifest.shards:
                reader = ShardReader(manifest.folder / manifest.shards[0].file, manifest.shards[0])
                try:
                    return reader.optional
                finally:
                    reader.close()
        return ()

    @property
    def compression(self) -> str:
        """How its shards are compressed."""
        found = self.main.settings.get("compression")
        return found if found in COMPRESSIONS else DEFAULT_COMPRESSION


def read_folder(folder: Path | str) -> ShardFolder:
    """Read the manifests of a shard folder.

    Raises:
        ValueError: if it is no finished shard folder, or that of held-out documents, or contradicts itself.
    """
    main = read_manifest(folder)
    if not main.tokenizer.get("files"):
        raise ValueError(
            f"{folder} has no tokenizer of its own: it holds the held-out documents of {main.folder.resolve().parent}; "
            "give that folder, they go along"
        )
    heldout = read_manifest(main.folder / HELDOUT_FOLDER) if has_heldout(main) else None
    if problems := count_problems(main, heldout):
        raise ValueError(problems[0])
    if heldout is None:
        return ShardFolder(main, None)
    if heldout.labels != main.labels or heldout.tokenizer["digest"] != main.tokenizer["digest"]:
        raise ValueError(f"{heldout.folder / MANIFEST_NAME} belongs to other shards than {main.folder / MANIFEST_NAME}")
    return ShardFolder(main, heldout)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[None]:
    """Hold ``output`` while a shard folder is made there; it is whole when its manifest is in place."""
    if (output / MANIFEST_NAME).is_file():
        raise ValueError(f"--output {output} holds finished shards; give another --output, or delete {output}")
    with claim(output):
        yield


def check_apart(output: Path, folders: Sequence[Path]) -> None:
    """Refuse an output folder that lies within one of the inputs, or is one."""
    for folder in folders:
        if output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--output {output} lies within {folder}, which is read; give another --output")


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """A folder to make.

    Attributes:
        model: a folder with the tokenizer to copy.
        heldout: tasks of the held-out documents; None if the folder has none.
        sources: counts are filled in.
        more_counts: beside those of documents, sentences and tokens.
    """

    output: Path
    model: ShardFolder
    kept: list[Task]
    heldout: list[Task] | None
    sources: list[Source]
    labels: list[str]
    settings: dict[str, Any]
    more_counts: dict[str, int]
    optional: tuple[str, ...]
    compression: str


def write_folder(plan: FolderPlan, num_workers: int) -> Manifest:
    """Make a folder; return its manifest.

    Raises:
        ValueError: if an input is damaged, or the output folder is taken; nothing is left of the output then.
        OSError: when the disk is full.
    """
    with new_folder(plan.output):
        copy_tokenizer(plan.model.main, plan.output)
        if plan.heldout is not None:
            (plan.output / HELDOUT_FOLDER).mkdir()
        tasks = [*plan.kept, *(plan.heldout or [])]
        job = RewriteJob(tasks, plan.optional, plan.compression, plan.output / TOKENIZER_FOLDER)
        with progress_bar(f"writing {plan.output.name}", sum(task.entry.num_bytes for task in tasks)) as progress:
            results = run_blocks(job, range(len(tasks)), num_workers, progress)
        return write_manifests(
            plan.output,
            plan.model.main.tokenizer,
            plan.sources,
            plan.labels,
            plan.settings,
            _part(results[: len(plan.kept)]),
            None if plan.heldout is None else _part(results[len(plan.kept) :]),
            plan.more_counts,
        )


@dataclass(frozen=True)
class FolderPart:
    """The documents that are kept, or those that are held out: the shards in order, and the counts in all of them."""

    shards: list[ShardEntry]
    counts: list[SourceCounts]


def write_manifests(
    output: Path,
    tokenizer: Mapping[str, Any],
    sources: Sequence[Source],
    labels: list[str],
    settings: dict[str, Any],
    kept: FolderPart,
    heldout: FolderPart | None,
    more_counts: dict[str, int],
) -> Manifest:
    """Write the manifest of the held-out documents, if the folder is to have any, then the main one, and return it.

    Args:
        tokenizer: of the main manifest, with its files.
        sources: counts are filled in.
        more_counts: beside those of documents, sentences and tokens.
    """
    identity = {name: value for name, value in tokenizer.items() if name != "files"}
    heldout_counts = totals(heldout.shards if heldout else [])
    counts = totals(kept.shards) | {f"heldout_{name}": count for name, count in heldout_counts.items()} | more_counts
    manifest = Manifest(
        folder=output,
        format_version=FORMAT_VERSION,
        tokenizer=dict(tokenizer),
        sources=with_counts(sources, kept.counts),
        shards=kept.shards,
        settings=settings,
        counts=counts,
        labels=labels,
    )
    if heldout is not None:
        write_manifest(
            dataclasses.replace(
                manifest,
                tokenizer=identity,
                sources=with_counts(sources, heldout.counts),
                shards=heldout.shards,
                counts=heldout_counts,
            ),
            output / HELDOUT_FOLDER,
        )
    write_manifest(manifest, output)
    return manifest


def _part(results: Sequence[Rewritten]) -> FolderPart:
    return FolderPart([result.entry for result in results if result.entry], [result.counts for result in results])


def copy_tokenizer(manifest: Manifest, output: Path) -> None:
    """Copy the tokenizer of a folder, file by file, each compared with its digest."""
    folder = output / TOKENIZER_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in manifest.tokenizer["files"].items():
        path = manifest.folder / TOKENIZER_FOLDER / name
        if not path.is_file():
            raise ValueError(f"{path} is missing, and the manifest lists it; copy the folder again or make it again")
        check_file(path, digest)
        write_atomically(folder / name, path.read_bytes())


def summary(manifest: Manifest) -> str:
    """Return a line that tells what a folder holds."""
    counts = manifest.counts
    return (
        f"{manifest.folder}: {len(manifest.shards):,} shards, {counts['documents']:,} documents, "
        f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens; held out {counts['heldout_documents']:,} "
        f"documents ({counts['heldout_tokens']:,} tokens)"
    )
