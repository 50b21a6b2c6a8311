"""Shows what a shard folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.manifest import Manifest, check_shard, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER
from preprocess.shards import ShardReader
from preprocess.tokenizer import Tokenizer, load_tokenizer

NUM_SAMPLES = 3
SAMPLE_TOKENS = 60
BAR_WIDTH = 40


def inspect_folder(folder: Path | str) -> Iterator[str]:
    """Yield lines about a shard folder: sources, counts, lengths of documents, unknown tokens, samples.

    Raises:
        ValueError: if it is no shard folder, or a shard is damaged.
    """
    manifest = read_manifest(folder)
    own = Path(folder) / TOKENIZER_FOLDER  # a heldout/ folder uses the one beside it
    tokenizer = load_tokenizer(own if own.is_dir() else Path(folder).resolve().parent / TOKENIZER_FOLDER)
    yield from _describe(manifest, tokenizer)
    if manifest.counts.get("heldout_documents"):
        heldout = read_manifest(Path(folder) / HELDOUT_FOLDER)
        yield f"held out: {heldout.counts['documents']:,} documents, {heldout.counts['tokens']:,} tokens"
    if not manifest.shards:
        return
    lengths, num_unknown = _survey(manifest, tokenizer)
    share = num_unknown / max(1, manifest.counts["tokens"])
    yield f"unknown tokens: {num_unknown:,} ({share:.3%} of all)"
    yield "tokens per document:"
    yield from histogram(lengths)
    yield "samples (words apart, pieces of a word joined by ·):"
    yield from _samples(manifest, tokenizer)


def _describe(manifest: Manifest, tokenizer: Tokenizer) -> Iterator[str]:
    counts = manifest.counts
    yield f"{manifest.folder}: {len(manifest.shards):,} shards, {sum(s.num_bytes for s in manifest.shards):,} bytes"
    yield f"manifest {manifest.digest}"
    yield f"tokenizer: {tokenizer.type}, {tokenizer.vocab_size:,} tokens, digest {tokenizer.digest[:16]}"
    yield f"settings: {', '.join(f'{name}={value}' for name, value in manifest.settings.items())}"
    for index, source in enumerate(manifest.sources):
        yield (
            f"source {index} {source.name}: {len(source.files):,} files, {source.layout}, "
            f"{source.num_documents:,} documents, {source.num_sentences:,} sentences, {source.num_tokens:,} tokens"
        )
    yield f"documents {counts['documents']:,}, sentences {counts['sentences']:,}, tokens {counts['tokens']:,}"
    for name, count in counts.items():
        if name.startswith("dropped_") and count:
            yield f"dropped {name.removeprefix('dropped_').replace('_', ' ')}: {count:,}"


def _survey(manifest: Manifest, tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], int]:
    """Return the length of every document, and the number of unknown tokens."""
    lengths = []
    num_unknown = 0
    for entry in manifest.shards:
        check_shard(manifest.folder, entry)
        reader = ShardReader(manifest.folder / entry.file, entry)
        lengths.append(np.diff(reader.document_offsets))
        num_unknown += int((reader.tokens(0, reader.num_tokens) == tokenizer.special_ids["unk"]).sum())
        reader.close()
    return np.concatenate(lengths), num_unknown


def histogram(lengths: npt.NDArray[np.int64]) -> Iterator[str]:
    """Yield a text histogram over powers of two, with mean, median and the longest."""
    yield f"  mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, longest {lengths.max():,}"
    exponents = np.frexp(lengths.astype(np.float64))[1]  # 2**(e-1) <= length < 2**e
    counts = np.bincount(exponents)
    for exponent in range(int(exponents.min()), len(counts)):
        bar = "#" * round(BAR_WIDTH * counts[exponent] / counts.max())
        yield f"  {1 << (exponent - 1):>9,} to {(1 << exponent) - 1:>9,}: {counts[exponent]:>10,} {bar}".rstrip()


def _samples(manifest: Manifest, tokenizer: Tokenizer) -> Iterator[str]:
    """Show the first document of a few shards spread over the folder."""
    chosen = np.unique(np.linspace(0, len(manifest.shards) - 1, NUM_SAMPLES).astype(int))
    for index in chosen.tolist():
        entry = manifest.shards[index]
        reader = ShardReader(manifest.folder / entry.file, entry)
        end = int(reader.document_offsets[1])
        ids = reader.tokens(0, min(end, SAMPLE_TOKENS)).tolist()
        source = manifest.sources[int(reader.document_source[0])].name
        reader.close()
        more = f" ... ({end:,} tokens)" if end > SAMPLE_TOKENS else ""
        yield f"  {entry.file} [{source}]: {show_words(ids, tokenizer)}{more}"


def show_words(ids: list[int], tokenizer: Tokenizer) -> str:
    """Return ids as text: a space before each word, a middle dot before each further piece of it."""
    text = ""
    for index in ids:
        token = tokenizer.tokens[index]
        text += f"·{token[len(tokenizer.prefix) :]}" if tokenizer.continuation[index] else f" {token}"
    return text.strip()
