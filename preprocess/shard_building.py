"""Makes a shard folder out of a corpus: blocks to workers, results to manifests."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.block_encoding import Documents, encode_block
from preprocess.corpus import Corpus, open_corpus
from preprocess.files import sha256_of_file
from preprocess.layout import LAYOUTS
from preprocess.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    Source,
    read_manifest,
    write_manifest,
)
from preprocess.output_folder import (
    HELDOUT_FOLDER,
    TOKENIZER_FOLDER,
    finish,
    remove_temporary_files,
    shard_name,
    take_over,
)
from preprocess.progress import progress_bar
from preprocess.shards import COMPRESSIONS, library_versions, write_shard
from preprocess.tokenizer import TOKENIZER_FILES, Tokenizer, load_tokenizer
from preprocess.workers import run_blocks

COUNTED = ("documents", "sentences", "tokens")
DROP_REASONS = ("documents_without_tokens", "sentences_without_tokens")
MAX_SOURCES = 1 << 16
DEFAULT_SHARD_BYTES = 64 << 20
DEFAULT_HELDOUT = 0.01
MIN_SHARD_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What to make shards of, and how."""

    corpus: Sequence[str]
    tokenizer: str
    output: str
    workers: int = 1
    heldout: float = DEFAULT_HELDOUT
    layout: str = "auto"
    shard_bytes: int = DEFAULT_SHARD_BYTES
    compression: str = "zstd"
    lowercase: bool | None = None

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        found = []
        if self.workers < 1:
            found.append(f"workers is {self.workers}: at least 1 is needed")
        if not 0 <= self.heldout < 1:
            found.append(f"heldout is {self.heldout}: a share of the documents from 0 to below 1 is needed")
        if self.shard_bytes < MIN_SHARD_BYTES:
            found.append(
                f"shard_bytes is {self.shard_bytes}: at least {MIN_SHARD_BYTES} is needed (default {DEFAULT_SHARD_BYTES})"
            )
        if self.layout not in ("auto", *LAYOUTS):
            found.append(f"layout is {self.layout!r}; allowed: auto, {', '.join(LAYOUTS)}")
        if self.compression not in COMPRESSIONS:
            found.append(f"compression is {self.compression!r}; allowed: {', '.join(COMPRESSIONS)}")
        if len(self.corpus) > MAX_SOURCES:
            found.append(f"{len(self.corpus):,} --corpus arguments: at most {MAX_SOURCES:,} sources; give folders")
        return found


@dataclass(frozen=True)
class BlockReport:
    """What one block gave; entries are None where it has no document."""

    kept: ShardEntry | None
    heldout: ShardEntry | None
    input_sha256: str
    dropped: Counter[str]
    source_counts: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardJob:
    """Encodes a block and writes its shards; see ``workers.Job``."""

    corpus: Corpus
    output: Path
    shard_bytes: int
    heldout: float
    compression: str

    def start(self) -> Tokenizer:
        """Load the tokenizer that travels with the shards."""
        return load_tokenizer(self.output / TOKENIZER_FOLDER)

    def run(self, state: Tokenizer, block: int, progress: Callable[[int], None]) -> BlockReport:
        """Encode and write one block."""
        encoded = encode_block(self.corpus, block, self.shard_bytes, state.encoder, self.heldout, progress)
        entries = {}
        counts = {}
        for part, documents, folder in (
            ("kept", encoded.kept, self.output),
            ("heldout", encoded.heldout, self.output / HELDOUT_FOLDER),
        ):
            entries[part] = self._write(folder / shard_name(block), documents, encoded.input_sha256)
            for source in np.unique(documents.source).tolist():
                counts[part, source] = documents.counts(source)
        return BlockReport(entries["kept"], entries["heldout"], encoded.input_sha256, encoded.dropped, counts)

    def _write(self, path: Path, documents: Documents, input_sha256: str) -> ShardEntry | None:
        if not len(documents.source):
            return None
        return write_shard(path, documents.arrays(), input_sha256, self.compression)


def build_shards(settings: ShardSettings, say: Callable[[str], None] = print) -> Manifest:
    """Make a shard folder, or recognise that it is complete already; return its manifest.

    Args:
        say: gets lines for the user.

    Raises:
        ValueError: for whatever the user can correct: settings, inputs, tokenizer, the output folder.
        OSError: when the disk is full.
    """
    problems = settings.problems()
    if problems:
        raise ValueError("; ".join(problems))
    output = Path(settings.output)
    tokenizer = load_tokenizer(settings.tokenizer, settings.lowercase)
    corpus, reports = open_corpus(settings.corpus, settings.layout)
    for line in (*tokenizer.notes, *reports):
        say(line)
    job = ShardJob(corpus, output, settings.shard_bytes, settings.heldout, settings.compression)
    if (output / MANIFEST_NAME).is_file():
        return recognise(read_manifest(output), tokenizer, corpus, job, settings.workers, say)
    if take_over(output):
        say(f"{output}: removed what an unfinished run had left")
    try:
        blocks = _encode(job, tokenizer, settings.workers)
        manifest = _write_manifests(job, tokenizer, blocks)
    finally:
        remove_temporary_files(output)
    finish(output)
    for line in summary(manifest):
        say(line)
    return manifest


def _encode(job: ShardJob, tokenizer: Tokenizer, num_workers: int) -> list[BlockReport]:
    tokenizer.save(job.output / TOKENIZER_FOLDER)
    if job.heldout:
        (job.output / HELDOUT_FOLDER).mkdir()
    num_blocks = job.corpus.num_blocks(job.shard_bytes)
    with progress_bar("encoding", job.corpus.num_bytes) as progress:
        return run_blocks(job, num_blocks, num_workers, progress)


def recognise(
    manifest: Manifest,
    tokenizer: Tokenizer,
    corpus: Corpus,
    job: ShardJob,
    num_workers: int,
    say: Callable[[str], None],
) -> Manifest:
    """Return the manifest of a finished folder if the same settings and inputs made it.

    Raises:
        ValueError: naming what differs.
    """
    folder = manifest.folder
    way_out = f"give another --output, or delete {folder} to make it again"
    wanted = _settings(job) | {"tokenizer": tokenizer.digest, "inputs": _sources(corpus, Counter())}
    found = manifest.settings | {
        "tokenizer": manifest.tokenizer.get("digest"),
        "inputs": [replace(source, num_documents=0, num_sentences=0, num_tokens=0) for source in manifest.sources],
    }
    different = [
        _difference(name, found.get(name), value) for name, value in wanted.items() if found.get(name) != value
    ]
    if different:
        raise ValueError(f"{folder} holds finished shards made differently: {'; '.join(different)}; {way_out}")
    with progress_bar("comparing inputs", corpus.num_bytes) as progress:
        digests = run_blocks(
            HashJob(corpus, job.shard_bytes), corpus.num_blocks(job.shard_bytes), num_workers, progress
        )
    if _joint_digest(digests) != manifest.settings["input_sha256"]:
        raise ValueError(f"{folder} holds finished shards of other text: the input files have changed; {way_out}")
    finish(folder)
    say(f"{folder} is complete: the same settings and inputs made it; nothing to do")
    if manifest.settings["versions"] != library_versions():
        say(f"note: it was made with {manifest.settings['versions']}, and installed are {library_versions()}")
    return manifest


@dataclass(frozen=True)
class HashJob:
    """Digests the text of a block; see ``workers.Job``."""

    corpus: Corpus
    shard_bytes: int

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress: Callable[[int], None]) -> str:
        """Return the sha256 of one block's text."""
        digest = hashlib.sha256()
        for _, _, data in self.corpus.block(block, self.shard_bytes):
            digest.update(data)
            progress(len(data))
        return digest.hexdigest()


def _difference(name: str, found: Any, wanted: Any) -> str:
    if name == "inputs":
        return "the input files, their sizes or layouts differ"
    return f"{name} was {found}, and now is {wanted}"


def _settings(job: ShardJob) -> dict[str, Any]:
    """Return the settings that decide the content."""
    return {"shard_bytes": job.shard_bytes, "compression": job.compression, "heldout": job.heldout}


def _joint_digest(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _sources(corpus: Corpus, counts: Counter[tuple[int, str]]) -> list[Source]:
    sources = []
    for index, name in enumerate(corpus.source_names):
        files = [file for file in corpus.files if file.source == index]
        layouts = sorted({file.layout for file in files})
        sources.append(
            Source(
                name=name,
                layout=layouts[0] if len(layouts) == 1 else "mixed",
                files=[{"name": file.name, "num_bytes": file.num_bytes, "layout": file.layout} for file in files],
                num_documents=counts[index, "documents"],
                num_sentences=counts[index, "sentences"],
                num_tokens=counts[index, "tokens"],
            )
        )
    return sources


def _write_manifests(job: ShardJob, tokenizer: Tokenizer, blocks: list[BlockReport]) -> Manifest:
    """Write the manifest of the held-out documents, then the main one."""
    dropped = sum((block.dropped for block in blocks), Counter())
    kept = _totals([block.kept for block in blocks])
    heldout = _totals([block.heldout for block in blocks])
    if not kept["documents"]:
        raise ValueError("no document is left to write: " + _why_empty(dropped, heldout))
    counts = kept | {f"heldout_{name}": count for name, count in heldout.items()}
    counts |= {f"dropped_{reason}": dropped[reason] for reason in DROP_REASONS}
    digest = _joint_digest([block.input_sha256 for block in blocks])
    common: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "settings": _settings(job) | {"input_sha256": digest, "versions": library_versions()},
    }
    identity = {"type": tokenizer.type, "digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size}
    if job.heldout:
        manifest = Manifest(
            folder=job.output / HELDOUT_FOLDER,
            tokenizer=identity,
            sources=_sources(job.corpus, _source_counts(blocks, "heldout")),
            shards=[block.heldout for block in blocks if block.heldout],
            counts=heldout,
            **common,
        )
        write_manifest(manifest, manifest.folder)
    files = {name: sha256_of_file(job.output / TOKENIZER_FOLDER / name) for name in TOKENIZER_FILES}
    manifest = Manifest(
        folder=job.output,
        tokenizer=identity | {"files": files},
        sources=_sources(job.corpus, _source_counts(blocks, "kept")),
        shards=[block.kept for block in blocks if block.kept],
        counts=counts,
        **common,
    )
    write_manifest(manifest, manifest.folder)
    return manifest


def _why_empty(dropped: Counter[str], heldout: dict[str, int]) -> str:
    return (
        f"{dropped['documents_without_tokens']:,} documents have no token and {heldout['documents']:,} are held out; "
        "give more text or a smaller --heldout"
    )


def _totals(entries: Sequence[ShardEntry | None]) -> dict[str, int]:
    present = [entry for entry in entries if entry]
    return {
        "documents": sum(entry.num_documents for entry in present),
        "sentences": sum(entry.num_sentences for entry in present),
        "tokens": sum(entry.num_tokens for entry in present),
    }


def _source_counts(blocks: list[BlockReport], part: str) -> Counter[tuple[int, str]]:
    totals: Counter[tuple[int, str]] = Counter()
    for block in blocks:
        for (block_part, source), counts in block.source_counts.items():
            if block_part == part:
                totals.update({(source, name): count for name, count in zip(COUNTED, counts, strict=True)})
    return totals


def summary(manifest: Manifest) -> list[str]:
    """Return lines that tell the user what a finished folder holds."""
    counts = manifest.counts
    lines = [
        f"{source.name}: {source.num_documents:,} documents, {source.num_sentences:,} sentences, "
        f"{source.num_tokens:,} tokens ({source.layout})"
        for source in manifest.sources
    ]
    lines.append(
        f"{manifest.folder}: {len(manifest.shards):,} shards, {counts['documents']:,} documents, "
        f"{counts['sentences']:,} sentences, {counts['tokens']:,} tokens; held out {counts['heldout_documents']:,} "
        f"documents ({counts['heldout_tokens']:,} tokens)"
    )
    for reason in DROP_REASONS:
        if counts[f"dropped_{reason}"]:
            lines.append(f"dropped {counts[f'dropped_{reason}']:,} {reason.replace('_', ' ')}")
    return lines
