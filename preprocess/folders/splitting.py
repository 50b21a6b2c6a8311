"""Cuts a shard folder into several: parts of nearly equal size, or one for each source."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.folders.assembly import FolderPlan, ShardFolder, check_apart, read_folder, summary, write_folder
from preprocess.folders.rewriting import LEFT_OUT, Origin, Task
from preprocess.folders.verification import check_workers
from preprocess.manifest import MANIFEST_NAME, Manifest, ShardEntry, Source, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER
from preprocess.progress import progress_bar
from preprocess.shards import ShardReader, library_versions
from preprocess.workers import run_blocks

MAX_NAME = 100  # characters of a folder's name that is made of a source's


def split_folder(
    folder: Path | str,
    output: Path | str,
    into: int | None = None,
    by: str | None = None,
    num_workers: int = 1,
    say: Callable[[str], None] = print,
) -> list[Manifest]:
    """Write the documents of a shard folder as several folders in ``output``; return their manifests.

    Parts that an earlier run of the same command has finished are left as they are.

    Args:
        into: number of parts part-01, ..., in the order of the documents and of nearly equal numbers of tokens.
        by: "source": a folder for each source, named after it.
        num_workers: processes; the result is the same for any number.
        say: gets lines for the user.

    Raises:
        ValueError: if there are more parts than documents, a shard is damaged, or a folder is taken.
        OSError: when the disk is full.
    """
    check_workers(num_workers)
    if (into is None) == (by is None) or by not in (None, "source"):
        raise ValueError(f"split needs either --into N or --by source, and got into={into} and by={by}")
    output = Path(output)
    whole = read_folder(folder)
    check_apart(output, [Path(folder)])
    if (output / MANIFEST_NAME).is_file():
        raise ValueError(f"--output {output} holds shards itself; give a folder for the parts")
    parts = _equal_parts(whole, into) if into is not None else _parts_by_source(whole, num_workers, say)
    manifests = []
    for part in parts:
        settings = _settings(whole, part.what)
        done = _finished(output / part.name, settings)
        if done is None:
            done = write_folder(_plan(whole, part, output / part.name, settings), num_workers)
        else:
            say(f"{done.folder} is complete: the same command made it")
        say(summary(done))
        manifests.append(done)
    return manifests


_Shards = list[tuple[ShardEntry, tuple[int, int] | None]]  # with the range of documents to take, None for all


@dataclass(frozen=True)
class _Part:
    """One folder to make."""

    name: str
    what: str  # for the manifest's settings
    kept: _Shards
    heldout: _Shards
    source: int | None = None  # the only one; None for all


def _settings(whole: ShardFolder, what: str) -> dict[str, Any]:
    origin = {"split_from": whole.main.digest, "split_part": what}
    return whole.main.settings | origin | {"compression": whole.compression, "versions": library_versions()}


def _finished(output: Path, settings: dict[str, Any]) -> Manifest | None:
    """Return the manifest of a part that is there already."""
    if not (output / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(output)
    names = ("split_from", "split_part")
    return manifest if all(manifest.settings.get(name) == settings[name] for name in names) else None


def _plan(whole: ShardFolder, part: _Part, output: Path, settings: dict[str, Any]) -> FolderPlan:
    sources = whole.main.sources if part.source is None else [whole.main.sources[part.source]]
    heldout: list[Task] | None = None
    if whole.heldout is not None:
        heldout = _tasks(whole.heldout, part.heldout, output / HELDOUT_FOLDER, sources)
    return FolderPlan(
        output=output,
        model=whole,
        kept=_tasks(whole.main, part.kept, output, sources),
        heldout=heldout,
        sources=sources,
        labels=whole.main.labels,
        settings=settings,
        more_counts={},
        optional=whole.optional,
        compression=whole.compression,
    )


def _tasks(manifest: Manifest, shards: _Shards, output: Path, sources: list[Source]) -> list[Task]:
    numbers = {source.name: number for number, source in enumerate(sources)}
    own = tuple(numbers.get(source.name, LEFT_OUT) for source in manifest.sources)
    origin = Origin(manifest, own, tuple(range(len(manifest.labels))))
    return [Task(origin, entry, output / entry.file, documents) for entry, documents in shards]


def _equal_parts(whole: ShardFolder, num_parts: int) -> list[_Part]:
    num_documents = whole.main.counts["documents"]
    if not 1 <= num_parts <= num_documents:
        raise ValueError(
            f"--into {num_parts:,}: {whole.main.folder} has {num_documents:,} documents, which can be split into 1 to "
            f"{num_documents:,} parts"
        )
    kept = _cut(whole.main, _borders(whole.main, num_parts, least=1))
    heldout = _cut(whole.heldout, _borders(whole.heldout, num_parts, least=0)) if whole.heldout else [[]] * num_parts
    digits = max(2, len(str(num_parts)))
    return [
        _Part(f"part-{number + 1:0{digits}d}", f"{number + 1}/{num_parts}", kept[number], heldout[number])
        for number in range(num_parts)
    ]


def _borders(manifest: Manifest, num_parts: int, least: int) -> list[int]:
    """Return the first document of each part, and the number of all; each part has ``least`` documents or more.

    A border is the document's beginning that lies nearest to an equal share of the tokens.
    """
    tokens = np.cumsum([0, *(entry.num_tokens for entry in manifest.shards)])
    documents = np.cumsum([0, *(entry.num_documents for entry in manifest.shards)])
    total = int(documents[-1])
    borders = [0]
    for part in range(1, num_parts):
        target = int(tokens[-1]) * part // num_parts
        shard = min(int(np.searchsorted(tokens, target, side="right")) - 1, len(manifest.shards) - 1)
        found = 0
        if manifest.shards:
            offsets = _document_offsets(manifest, manifest.shards[shard]) + tokens[shard]
            found = int(documents[shard]) + int(np.abs(offsets - target).argmin())
        borders.append(min(max(found, borders[-1] + least), total - least * (num_parts - part)))
    return [*borders, total]


def _document_offsets(manifest: Manifest, entry: ShardEntry) -> np.ndarray:
    reader = ShardReader(manifest.folder / entry.file, entry)
    try:
        return reader.document_offsets
    finally:
        reader.close()


def _cut(manifest: Manifest, borders: list[int]) -> list[_Shards]:
    """Return for each part the shards that it has documents of, with their range."""
    firsts = np.cumsum([0, *(entry.num_documents for entry in manifest.shards)]).tolist()
    parts = []
    for begin, end in itertools.pairwise(borders):
        shards: _Shards = []
        for entry, (first, behind) in zip(manifest.shards, itertools.pairwise(firsts), strict=True):
            if max(begin, first) < min(end, behind):
                shards.append((entry, (max(begin, first) - first, min(end, behind) - first)))
        parts.append(shards)
    return parts


def _parts_by_source(whole: ShardFolder, num_workers: int, say: Callable[[str], None]) -> list[_Part]:
    kept = _shards_by_source(whole.main, num_workers)
    heldout: dict[str, list[ShardEntry]] = {}
    if whole.heldout is not None:
        heldout = _shards_by_source(whole.heldout, num_workers)
    parts = []
    names: set[str] = set()
    for number, source in enumerate(whole.main.sources):
        if source.name not in kept:
            beside = ", and some that are held out, which go nowhere" if source.name in heldout else ""
            say(f"note: source {source.name!r} has no documents{beside}: no folder is made for it")
            continue
        name = _folder_name(source.name, names)
        names.add(name.casefold())
        shards: list[_Shards] = [[(entry, None) for entry in found.get(source.name, [])] for found in (kept, heldout)]
        parts.append(_Part(name, f"source {source.name}", shards[0], shards[1], number))
    return parts


def _folder_name(source: str, taken: set[str]) -> str:
    """Return a name for the folder of a source that is a plain file name everywhere, and not taken."""
    plain = re.sub(r"[^\w.-]+", "_", source)[-MAX_NAME:].strip("._-") or "source"
    name, number = plain, 2
    while name.casefold() in taken:
        name, number = f"{plain}-{number}", number + 1
    return name


@dataclass(frozen=True)
class _SourcesJob:
    """Finds which sources a shard has documents of; see ``workers.Job``."""

    manifest: Manifest

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> list[int]:
        """Return the numbers of the sources of one shard."""
        entry = self.manifest.shards[block]
        reader = ShardReader(self.manifest.folder / entry.file, entry)
        try:
            found = np.unique(reader.document_source)
        finally:
            reader.close()
        if found[-1] >= len(self.manifest.sources):
            raise ValueError(f"{reader.path} has a document of source {found[-1]}, which the manifest lacks")
        progress(entry.num_bytes)
        return found.tolist()


def _shards_by_source(manifest: Manifest, num_workers: int) -> dict[str, list[ShardEntry]]:
    """Return the shards that have documents of a source, by its name."""
    blocks = range(len(manifest.shards))
    with progress_bar("reading sources", sum(entry.num_bytes for entry in manifest.shards)) as progress:
        found = run_blocks(_SourcesJob(manifest), blocks, num_workers, progress)
    shards: dict[str, list[ShardEntry]] = {}
    for entry, numbers in zip(manifest.shards, found, strict=True):
        for number in numbers:
            shards.setdefault(manifest.sources[number].name, []).append(entry)
    return shards
