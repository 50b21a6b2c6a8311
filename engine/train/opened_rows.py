"""The rows of a run, planned once and opened on every rank, which must all see the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.config.cli import collect
from engine.data.mixture import MixedRows, Mixture
from engine.data.rows import RowReader
from engine.data.source import RowSource
from engine.train.distributed import global_rank, raise_together, refuse_disagreement, wait_for_rank_zero, world_size
from engine.train.resolve import Resolved
from engine.train.timeline import Timeline
from preprocess.manifest import Manifest
from preprocess.output_folder import CACHE_FOLDER


@dataclass(frozen=True)
class OpenedRows:
    """Rows to train and to evaluate on.

    Attributes:
        training: of all sources.
        sources: the training rows of each source, by its name.
        held_out: the held-out rows of each source that has some, by its name.
        mixture: of several sources; None for one.
    """

    training: RowSource
    sources: dict[str, RowSource]
    held_out: dict[str, RowSource]
    mixture: Mixture | None

    def progress(self, timeline: Timeline, step: int) -> dict[str, int]:
        """Rows that each source of a mixture has given to the steps before this one, as ``rows/SOURCE``."""
        if self.mixture is None:
            return {}
        rows = self.mixture.rows_before(0)
        for count in timeline.rows_before(step).values():
            rows = rows + self.mixture.rows_before(count)
        return {f"rows/{name}": count for name, count in zip(self.sources, rows.tolist(), strict=True)}

    def notes(self, resolved: Resolved) -> list[str]:
        """What a user should know of the rows."""
        found = [] if self.mixture is None else self._shares(resolved)
        shards, knows = resolved.config.data.shards, resolved.tokenizer.continuation
        if not self.held_out:
            found.append(f"{shards} holds no held-out documents: nothing is evaluated")
        wordless = [name for name, source in self.sources.items() if not source.knows_words(knows)]
        if resolved.config.masking.whole_word and wordless:
            where = shards if len(self.sources) == 1 else ", ".join(wordless)
            found.append(
                f"masking.whole_word changes nothing: in {where} every token is a word of its own; for Chinese make "
                "the shards with --word_segmenter rjieba"
            )
        return found

    def _shares(self, resolved: Resolved) -> list[str]:
        """Share, rows and epochs of each source."""
        timeline = resolved.timeline
        rows = self.progress(timeline, timeline.steps)
        lines = []
        for source in resolved.sources:
            seen, length = rows[f"rows/{source.name}"], timeline.at(0).seq_length
            held = self.sources[source.name].num_rows(length)
            lines.append(
                f"{source.name}: {source.weight:.2%} of the rows, {seen:,} in this run; it holds {held:,} of {length} "
                "tokens"
            )
        return lines


def open_rows(resolved: Resolved) -> OpenedRows:
    """Plan the rows; rank 0 goes first, and the others find its plans on disk.

    Raises:
        ValueError: on every rank, if one finds its shards damaged, or sees other ones than rank 0.
    """
    problems: list[str] = []
    opened = collect(problems, lambda: _open(resolved)) if global_rank() == 0 else None
    wait_for_rank_zero()
    raise_together("\n".join(problems) or None)
    opened = opened or collect(problems, lambda: _open(resolved))
    raise_together("\n".join(problems) or None)
    assert opened is not None
    refuse_disagreement(
        _what_is_read(resolved, opened), "train on other rows", "give all hosts the same shards and the same command"
    )
    raise_together(_too_few_rows(resolved, opened))
    return opened


def _open(resolved: Resolved) -> OpenedRows:
    config, objective, lengths = resolved.config, resolved.objective, resolved.timeline.lengths()
    num_readers = len(lengths) * sum(2 if source.held_out else 1 for source in resolved.sources)

    def open_readers(manifest: Manifest, number: int = 0) -> dict[int, RowReader]:
        folders = (manifest.folder / CACHE_FOLDER, Path(config.train.output).parent / CACHE_FOLDER)
        return {
            length: RowReader(manifest, length, objective.sequence_layout, config.seed, folders, number, num_readers)
            for length in lengths
        }

    names = [source.name for source in resolved.sources]
    readers = [open_readers(source.manifest, number) for number, source in enumerate(resolved.sources)]
    sources = {name: RowSource(own, objective) for name, own in zip(names, readers, strict=True)}
    held_out = {
        source.name: RowSource(open_readers(source.held_out), objective)
        for source in resolved.sources
        if source.held_out is not None
    }
    if len(names) == 1:
        return OpenedRows(sources[names[0]], sources, held_out, None)
    mixture = Mixture([source.share for source in resolved.sources], config.seed)
    mixed = {length: MixedRows([own[length] for own in readers], names, mixture) for length in lengths}
    return OpenedRows(RowSource(mixed, objective), sources, held_out, mixture)


def _what_is_read(resolved: Resolved, opened: OpenedRows) -> dict[str, str]:
    """What decides the rows of every step, in a user's words."""
    facts = {"steps of the run": f"{resolved.timeline.steps:,}"}
    for source in resolved.sources:
        facts[f"digest of {source.manifest.folder}"] = source.manifest.digest[:16]
        for length in resolved.timeline.lengths():
            rows = opened.sources[source.name].num_rows(length)
            facts[f"rows of {length} tokens in {source.manifest.folder}"] = f"{rows:,}"
    return facts


def _too_few_rows(resolved: Resolved, opened: OpenedRows) -> str | None:
    """A run on more ranks than there are rows would train on the same rows several times in one step."""
    for length in resolved.timeline.lengths():
        if (rows := opened.training.num_rows(length)) < world_size():
            return (
                f"data.shards {resolved.config.data.shards} hold {rows} rows of {length} tokens, "
                f"fewer than the {world_size()} ranks; start fewer ranks, shorten data.seq_length, or give more text"
            )
    return None
