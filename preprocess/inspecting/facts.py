"""The facts about a shard folder, for lines of text and for the page alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from preprocess.folders.counts import other_counts
from preprocess.inspecting.samples import PIECE, SECOND, SENTENCE, Sample, printable
from preprocess.inspecting.shard_statistics import Statistics, log_bins, mean, median
from preprocess.manifest import Manifest
from preprocess.tokenizer import Tokenizer

NUM_FREQUENT = 20


@dataclass(frozen=True)
class Section:
    """Some facts: lines, or a table.

    Attributes:
        plot: name of the plot that shows them on the page, "" for none.
        bars: one number a row, shown as a bar behind it; empty for none.
    """

    title: str
    lines: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    bars: tuple[int, ...] = ()
    plot: str = ""

    def is_number(self, column: int) -> bool:
        """Whether a column of the table holds numbers."""
        return all(row[column][:1] in "0123456789-" and row[column][-1:] in "0123456789%-" for row in self.rows)


def describe(
    manifest: Manifest,
    heldout: Manifest | None,
    tokenizer: Tokenizer,
    statistics: Statistics,
    samples: list[Sample],
) -> Iterator[Section]:
    """Yield all facts."""
    yield _folder(manifest, heldout, tokenizer)
    yield _sources(manifest, tokenizer, statistics)
    if not manifest.shards:
        return
    yield _vocabulary(tokenizer, statistics)
    yield _frequent(tokenizer, statistics)
    yield _lengths("tokens per document", statistics.document_tokens, "document_tokens")
    yield _lengths("sentences per document", statistics.document_sentences, "")
    yield _lengths("tokens per sentence", statistics.sentence_tokens, "sentence_tokens")
    if manifest.labels:
        names = ["(none)", *map(printable, manifest.labels)]
        rows = [(name, f"{count:,}") for name, count in zip(names, statistics.labels.tolist(), strict=True)]
        yield Section("documents of each label", header=("label", "documents"), rows=tuple(rows))
    yield _samples(samples)


def _folder(manifest: Manifest, heldout: Manifest | None, tokenizer: Tokenizer) -> Section:
    counts = manifest.counts
    lines = [
        f"{manifest.folder}: {len(manifest.shards):,} shards, {sum(s.num_bytes for s in manifest.shards):,} bytes",
        f"manifest {manifest.digest}",
        f"tokenizer: {tokenizer.type}, {tokenizer.vocab_size:,} tokens, digest {tokenizer.digest[:16]}",
        f"settings: {', '.join(f'{name}={value}' for name, value in manifest.settings.items())}",
        f"documents {counts['documents']:,}, sentences {counts['sentences']:,}, tokens {counts['tokens']:,}",
    ]
    if heldout is not None:
        lines.append(f"held out: {heldout.counts['documents']:,} documents, {heldout.counts['tokens']:,} tokens")
    for name, count in counts.items():
        if name.startswith("dropped_") and count:
            lines.append(f"dropped {name.removeprefix('dropped_').replace('_', ' ')}: {count:,}")
    for name in sorted(other_counts([manifest])):
        if not name.startswith("dropped_"):
            lines.append(f"{name.replace('_', ' ')}: {counts[name]:,}")
    return Section("folder", lines=tuple(map(printable, lines)))


def _sources(manifest: Manifest, tokenizer: Tokenizer, statistics: Statistics) -> Section:
    has_unknown = "unk" in tokenizer.special_ids
    rows = []
    for index, source in enumerate(manifest.sources):
        share = int(statistics.unknown[index]) / max(1, source.num_tokens)
        rows.append(
            (
                f"source {index} {printable(source.name)}",
                f"{len(source.files):,}",
                source.layout,
                f"{source.num_documents:,}",
                f"{source.num_sentences:,}",
                f"{source.num_tokens:,}",
                f"{share:.3%}" if has_unknown else "-",
            )
        )
    header = ("source", "files", "layout", "documents", "sentences", "tokens", "unknown")
    return Section("sources", header=header, rows=tuple(rows), plot="sources" if len(rows) > 1 else "")


def _vocabulary(tokenizer: Tokenizer, statistics: Statistics) -> Section:
    num_tokens, num_unknown = int(statistics.token_counts.sum()), int(statistics.unknown.sum())
    ordinary = ~tokenizer.all_special
    num_ordinary = int(ordinary.sum())
    num_seen = int((statistics.token_counts[ordinary] > 0).sum())
    lines = ["unknown tokens: none, the vocabulary has a token for everything"]
    if "unk" in tokenizer.special_ids:
        lines = [f"unknown tokens: {num_unknown:,} ({num_unknown / max(1, num_tokens):.3%} of all)"]
    lines.append(
        f"vocabulary: {num_seen:,} of {num_ordinary:,} ordinary tokens occur ({num_seen / max(1, num_ordinary):.1%}), "
        f"{num_ordinary - num_seen:,} never do"
    )
    if statistics.second_texts:
        lines.append(f"second texts: {statistics.second_texts:,} documents have one")
    return Section("vocabulary", lines=tuple(lines), plot="ranks")


def _frequent(tokenizer: Tokenizer, statistics: Statistics) -> Section:
    order = np.argsort(-statistics.token_counts, kind="stable")[:NUM_FREQUENT].tolist()
    whole = max(1, int(statistics.token_counts.sum()))
    rows = []
    for index in order:
        count = int(statistics.token_counts[index])
        if count:
            rows.append((printable(tokenizer.tokens[index]), f"{index:,}", f"{count:,}", f"{count / whole:.2%}"))
    return Section("most frequent tokens", header=("token", "id", "times", "share"), rows=tuple(rows))


def _lengths(title: str, lengths: Mapping[int, int], plot: str) -> Section:
    bins = log_bins(lengths)
    return Section(
        title,
        lines=(f"mean {mean(lengths):.1f}, median {median(lengths):g}, longest {max(lengths):,}",),
        header=("from", "to", "how many"),
        rows=tuple((f"{least:,}", f"{most:,}", f"{count:,}") for least, most, count in bins),
        bars=tuple(count for _, _, count in bins),
        plot=plot,
    )


def _samples(samples: list[Sample]) -> Section:
    rows = []
    for sample in samples:
        about = printable(sample.source if sample.label is None else f"{sample.source}, {sample.label}")
        more = f" ... ({sample.num_tokens:,} tokens)" if sample.text_is_cut else ""
        rows.append(f"{sample.file}, document {sample.document} [{about}]: {sample.text}{more}")
    title = (
        f"samples (words apart, pieces of a word joined by {PIECE}, {SENTENCE} before a sentence, "
        f"{SECOND} before a second text)"
    )
    return Section(title, lines=tuple(rows))
