"""Makes a shard folder of the static HDF5 files of the NVIDIA BERT recipes: masking undone, repeated texts dropped."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.cleaning.duplicates import DIGEST_BYTES, find_duplicates, read_duplicates, write_digests
from preprocess.files import sha256_of_file
from preprocess.folders.assembly import FolderPart, new_folder, summary, write_manifests
from preprocess.folders.counts import SourceCounts, count_by_source, totals
from preprocess.folders.rewriting import select_documents
from preprocess.importing.nvidia_files import LAYOUT, NvidiaFile, find_files
from preprocess.importing.nvidia_rows import RowDocuments, SpecialIds, read_rows
from preprocess.manifest import Manifest, ShardEntry, Source
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, WORK_FOLDER, shard_name
from preprocess.progress import progress_bar
from preprocess.shards import COMPRESSIONS, ShardArrays, library_versions, write_shard
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.workers import Job, run_blocks

DEFAULT_HELDOUT = 0.01
SHARD_TOKENS = 1 << 22  # of rows, special tokens and padding included, that become one shard
REASONS = ("documents_duplicate", "documents_without_tokens")


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    """What to import, and how.

    Attributes:
        files: each [NAME=]PATH: a file, a folder (its .h5 and .hdf5 files) or a pattern. Those with one NAME are one
            source; those without are the source "nvidia".
        tokenizer: the vocabulary that the files were made with: file or folder.
        heldout: share of the documents to hold out, chosen by a hash of each one's tokens.
        keep_duplicates: keep documents that are exact repetitions of an earlier one.
    """

    files: Sequence[str]
    tokenizer: str
    output: str
    heldout: float = DEFAULT_HELDOUT
    keep_duplicates: bool = False
    compression: str = "zstd"
    lowercase: bool | None = None
    workers: int = 1

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if isinstance(self.files, str) or not self.files:
            found.append(f"files is {self.files!r}: a list of at least one file, folder or pattern is needed")
        if self.workers < 1:
            found.append(f"workers is {self.workers}: at least 1 is needed")
        if not 0 <= self.heldout < 1:
            found.append(f"heldout is {self.heldout}: a share of the documents from 0 to below 1 is needed")
        if self.compression not in COMPRESSIONS:
            found.append(f"compression is {self.compression!r}; allowed: {', '.join(COMPRESSIONS)}")
        return found


def import_nvidia(settings: ImportSettings, say: Callable[[str], None] = print) -> Manifest:
    """Make a shard folder of static files; return its manifest.

    Segments a and b of a row become two sentences of one document, or two documents if b is from another one.

    Args:
        say: gets lines for the user.

    Raises:
        ValueError: for settings, files, tokenizer or output folder that cannot be used, naming file and row.
        OSError: when the disk is full.
    """
    problems = settings.problems()
    if problems:
        raise ValueError("; ".join(problems))
    tokenizer = load_tokenizer(settings.tokenizer, settings.lowercase)
    special = SpecialIds.of(tokenizer)
    names, files = find_files(settings.files)
    for line in tokenizer.notes:
        say(line)
    say(f"{len(files):,} files, {sum(file.num_rows for file in files):,} rows")
    output = Path(settings.output)
    with new_folder(output):
        tokenizer.save(output / TOKENIZER_FOLDER)
        (output / WORK_FOLDER).mkdir()
        if settings.heldout:
            (output / HELDOUT_FOLDER).mkdir()
        blocks = list(_blocks(files))
        job = ImportJob(output, blocks, special, tokenizer.dtype, settings.heldout, settings.compression)
        if not settings.keep_duplicates:
            job = _find_duplicates(job, settings.workers)
        reports = _run(job, blocks, "importing", settings.workers)
        shutil.rmtree(output / WORK_FOLDER)
        manifest = _write_manifests(settings, tokenizer, names, files, reports)
    _tell(manifest, reports, say)
    return manifest


def _tell(manifest: Manifest, reports: Sequence[BlockReport], say: Callable[[str], None]) -> None:
    say(summary(manifest))
    for reason in REASONS:
        if manifest.counts[f"dropped_{reason}"]:
            say(f"dropped {manifest.counts[f'dropped_{reason}']:,} {reason.replace('_', ' ')}")
    num_masked = sum(report.num_masked for report in reports)
    if num_masked:
        say(f"note: {num_masked:,} tokens are [MASK] in the original text too, or were masked without being listed")


@dataclass(frozen=True)
class RowBlock:
    """Rows of a file that become one shard."""

    file: NvidiaFile
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """About how much of the file they are, for the progress bar."""
        return (
            self.file.num_bytes * self.end // self.file.num_rows
            - self.file.num_bytes * self.begin // self.file.num_rows
        )


def _blocks(files: Sequence[NvidiaFile]) -> Iterator[RowBlock]:
    for file in files:
        step = max(1, SHARD_TOKENS // file.length)
        for begin in range(0, file.num_rows, step):
            yield RowBlock(file, begin, min(file.num_rows, begin + step))


@dataclass(frozen=True)
class BlockReport:
    """What one block gave; entries are None where it has no document."""

    kept: ShardEntry | None
    heldout: ShardEntry | None
    input_sha256: str
    counts: dict[str, SourceCounts]
    dropped: Counter[str] = field(default_factory=Counter)
    num_masked: int = 0


@dataclass(frozen=True)
class ImportJob:
    """Turns blocks of rows into shards; see ``workers.Job``.

    Attributes:
        input_sha256: of the data of each block, as it was when duplicates were looked for; empty if they stay.
    """

    output: Path
    blocks: list[RowBlock]
    special: SpecialIds
    dtype: np.dtype
    heldout: float
    compression: str
    input_sha256: tuple[str, ...] = ()

    def start(self) -> None:
        """Need nothing."""

    def digests_path(self, block: int) -> Path:
        """Return where the digests of a block's documents are."""
        return self.output / WORK_FOLDER / f"digests-{block:05d}"

    def duplicates_path(self, block: int) -> Path:
        """Return where the numbers of a block's duplicates are."""
        return self.output / WORK_FOLDER / f"duplicates-{block:05d}"

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> BlockReport:
        """Write the shards of one block."""
        rows = self.blocks[block]
        digest = hashlib.sha256()
        parts = list(read_rows(rows.file, rows.begin, rows.end, self.special, digest))
        arrays = _joined(parts, self.dtype, rows.file.source)
        dropped = Counter({"documents_without_tokens": sum(part.num_empty for part in parts)})
        kept = np.ones(len(arrays.document_source), np.bool_)
        if self.input_sha256:
            if self.input_sha256[block] != digest.hexdigest():
                raise ValueError(f"{rows.file.path} changes while it is read")
            duplicates = read_duplicates(self.duplicates_path(block))
            kept[duplicates] = False
            dropped["documents_duplicate"] = len(duplicates)
        heldout = self._held_out(arrays)
        entries: dict[str, ShardEntry | None] = {}
        counts: dict[str, SourceCounts] = {}
        for part, chosen, folder in (
            ("kept", kept & ~heldout, self.output),
            ("heldout", kept & heldout, self.output / HELDOUT_FOLDER),
        ):
            entries[part] = None
            if chosen.any():
                own = select_documents(arrays, chosen)
                entries[part] = write_shard(folder / shard_name(block), own, digest.hexdigest(), self.compression)
                counts[part] = count_by_source(own)
        progress(rows.num_bytes)
        num_masked = sum(part.num_masked for part in parts)
        return BlockReport(entries["kept"], entries["heldout"], digest.hexdigest(), counts, dropped, num_masked)

    def _held_out(self, arrays: ShardArrays) -> npt.NDArray[np.bool_]:
        """Return which documents are held out: equal ones always are, or are not."""
        if not self.heldout:
            return np.zeros(len(arrays.document_source), np.bool_)
        limit = int(self.heldout * 2**64)
        values = (int.from_bytes(digest[:8], "big") for digest in token_digests(arrays.tokens, arrays.document_offsets))
        return np.fromiter((value < limit for value in values), np.bool_, len(arrays.document_source))


@dataclass(frozen=True)
class DigestJob:
    """Writes the digests of the documents of a block; see ``workers.Job``."""

    shards: ImportJob

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> str:
        """Digest the documents of one block, and return the digest of its data."""
        rows = self.shards.blocks[block]
        digest = hashlib.sha256()
        digests: list[bytes] = []
        for part in read_rows(rows.file, rows.begin, rows.end, self.shards.special, digest):
            digests += token_digests(part.tokens, _offsets(part.num_tokens))
        write_digests(self.shards.digests_path(block), digests)
        progress(rows.num_bytes)
        return digest.hexdigest()


def token_digests(tokens: np.ndarray, document_offsets: npt.NDArray[np.int64]) -> list[bytes]:
    """Return a 16-byte digest of each document's ids; where its sentences end does not matter."""
    data = memoryview(tokens.astype("<u4").tobytes())
    places = (4 * document_offsets).tolist()
    return [
        hashlib.blake2b(data[begin:end], digest_size=DIGEST_BYTES).digest() for begin, end in itertools.pairwise(places)
    ]


def _find_duplicates(job: ImportJob, num_workers: int) -> ImportJob:
    """Find the documents that occur earlier, in bounded memory; return the job that leaves them out."""
    digests = _run(DigestJob(job), job.blocks, "looking for repeated texts", num_workers)
    numbers = range(len(job.blocks))
    find_duplicates([job.digests_path(k) for k in numbers], [job.duplicates_path(k) for k in numbers])
    return replace(job, input_sha256=tuple(digests))


def _run(job: Job, blocks: list[RowBlock], what: str, num_workers: int) -> list[Any]:
    with progress_bar(what, sum(block.num_bytes for block in blocks)) as progress:
        return run_blocks(job, range(len(blocks)), num_workers, progress)


def _joined(parts: Sequence[RowDocuments], dtype: np.dtype, source: int) -> ShardArrays:
    num_documents = sum(len(part.num_tokens) for part in parts)
    return ShardArrays(
        np.concatenate([part.tokens for part in parts]).astype(dtype),
        _offsets(np.concatenate([part.sentence_lengths for part in parts])),
        _offsets(np.concatenate([part.num_tokens for part in parts])),
        np.full(num_documents, source, np.uint16),
    )


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _write_manifests(
    settings: ImportSettings,
    tokenizer: Tokenizer,
    names: Sequence[str],
    files: Sequence[NvidiaFile],
    reports: Sequence[BlockReport],
) -> Manifest:
    output = Path(settings.output)
    kept, heldout = _part(reports, "kept"), _part(reports, "heldout")
    dropped = sum((report.dropped for report in reports), Counter())
    if not kept.shards:
        raise ValueError(
            f"no document is left to write: {totals(heldout.shards)['documents']:,} are held out and "
            f"{dropped['documents_without_tokens']:,} have no token; give more files or a smaller --heldout"
        )
    digest = hashlib.sha256("\n".join(report.input_sha256 for report in reports).encode()).hexdigest()
    tokenizer_files = {path.name: sha256_of_file(path) for path in sorted((output / TOKENIZER_FOLDER).iterdir())}
    return write_manifests(
        output,
        tokenizer={
            "type": tokenizer.type,
            "digest": tokenizer.digest,
            "vocab_size": tokenizer.vocab_size,
            "files": tokenizer_files,
        },
        sources=[_source(name, [file for file in files if file.source == index]) for index, name in enumerate(names)],
        labels=[],
        settings={
            "imported": LAYOUT,
            "shard_tokens": SHARD_TOKENS,
            "compression": settings.compression,
            "heldout": settings.heldout,
            "keep_duplicates": settings.keep_duplicates,
            "input_sha256": digest,
            "versions": library_versions(),
        },
        kept=kept,
        heldout=heldout if settings.heldout else None,
        more_counts={f"dropped_{reason}": dropped[reason] for reason in REASONS},
    )


def _part(reports: Sequence[BlockReport], part: str) -> FolderPart:
    entries: list[ShardEntry | None] = [getattr(report, part) for report in reports]
    counts = [report.counts[part] for report in reports if part in report.counts]
    return FolderPart([entry for entry in entries if entry], counts)


def _source(name: str, files: Sequence[NvidiaFile]) -> Source:
    described = [{"name": file.name, "num_bytes": file.num_bytes, "layout": LAYOUT} for file in files]
    return Source(name=name, layout=LAYOUT, files=described, num_documents=0, num_sentences=0, num_tokens=0)
