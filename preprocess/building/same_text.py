"""Parts of one folder must read the same text: their plans say which files, and their blocks' records what they saw."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from preprocess.building.block_inputs import block_files, files_of_block, text_key
from preprocess.building.resume import hashes_now
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, WorkFolder
from preprocess.corpus.corpus import Corpus, CorpusSettings, InputFile

NUM_SAMPLES = 16
SAMPLE_BYTES = 1 << 12
MAX_NAMED = 5
ANY_EXPANSION = 1 << 40  # of a file that a part has read already

FileKey = tuple[int, str]  # source and name


def describe_files(corpus: Corpus, sampled: bool) -> list[dict[str, Any]]:
    """Return the files of a corpus as they are now, for a plan.

    Args:
        sampled: add a digest of parts of each file's bytes.
    """
    return [
        dataclasses.asdict(file)
        | {"row_groups": list(file.row_groups), "sample_sha256": _sample(file) if sampled else None}
        for file in corpus.files
    ]


def _sample(file: InputFile) -> str:
    """Return the sha256 of ranges spread evenly over a file, its beginning and its end among them."""
    last = max(file.stored_bytes - SAMPLE_BYTES, 0)
    digest = hashlib.sha256()
    try:
        with open(file.path, "rb") as opened:
            for offset in sorted({last * number // (NUM_SAMPLES - 1) for number in range(NUM_SAMPLES)}):
                digest.update(os.pread(opened.fileno(), SAMPLE_BYTES, offset))
    except OSError as error:
        raise ValueError(f"cannot read {file.path}: {error.strerror}") from None
    return digest.hexdigest()


def refuse_other_text(
    settings: ShardSettings,
    corpus: Corpus,
    work: WorkFolder,
    found: Mapping[str, Any],
    now: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Compare a part's files with those of the part that made the plan.

    Files that have only another time of change, as copies on another machine have, are compared by the blocks that are
    done: these are read again.

    Args:
        found: the plan that is there.
        now: this part's own plan.

    Raises:
        ValueError: naming files that have other bytes.
    """
    before = {(file["source"], file["name"]): file for file in found.get("inputs", ())}
    other: set[FileKey] = set()
    touched: set[FileKey] = set()
    for file in now["inputs"]:
        key = (file["source"], file["name"])
        known = before.get(key, file)
        samples = {known["sample_sha256"], file["sample_sha256"]} - {None}
        if known["stored_bytes"] != file["stored_bytes"] or len(samples) > 1:
            other.add(key)
        elif known["modified_ns"] != file["modified_ns"]:
            touched.add(key)
    if not other:
        other = _files_of_other_text(settings, corpus, work, touched)
    if other:
        raise ValueError(
            f"{work.output} holds an unfinished run of other text: {_names(corpus, other)} changed since another part "
            "read it; put it back as it was, run the command without --part to make again what does not fit, or "
            f"delete {work.output} to start again"
        )
    if touched:
        say(f"note: {_names(corpus, touched)} has another time of change than in other parts, and equal text")


def _files_of_other_text(
    settings: ShardSettings, corpus: Corpus, work: WorkFolder, touched: Collection[FileKey]
) -> set[FileKey]:
    """Return which of some files have other text than the blocks that are done, or were compared with others."""
    if not touched:
        return set()
    num_blocks = corpus.num_blocks(settings.shard_bytes)
    digests = work.all_digests()
    blocks = [
        block
        for block in sorted({*work.blocks_on_disk(), *digests})
        if block < num_blocks and _keys(files_of_block(corpus, block, settings.shard_bytes)) & set(touched)
    ]
    hashes = hashes_now(corpus, blocks, settings.shard_bytes, settings.workers)
    other: set[FileKey] = set()
    for block in blocks:
        key = text_key(block_files(corpus, block, settings.shard_bytes), hashes[block])
        record = work.read_record(block)
        if (record is not None and text_key(record.files, record.input_sha256) != key) or any(
            path != work.digests_path(block, key) for path in digests.get(block, ())
        ):
            other |= _keys(files_of_block(corpus, block, settings.shard_bytes)) & set(touched)
    return other


def check_records_agree(
    plan: Mapping[str, Any], records: Sequence[BlockRecord], work: WorkFolder, say: Callable[[str], None]
) -> None:
    """Compare what the blocks of all parts were made of; files that they saw with several times are read again.

    Raises:
        ValueError: naming files of which blocks have other text than there is now.
    """
    seen: dict[FileKey, set[tuple[int, int]]] = {}
    for record in records:
        for file in record.files:
            seen.setdefault((file.source, file.description["name"]), set()).add((file.stored_bytes, file.modified_ns))
    doubtful = {key for key, states in seen.items() if len(states) > 1}
    corpus, gone = _corpus_now(plan) if doubtful else (Corpus(_source_names(plan), ()), set())
    other = _with_other_digests(records, work) | _stale(plan, corpus, records, doubtful, gone)
    if other:
        raise ValueError(
            f"{work.output} holds blocks of different text: {_names(corpus, other)} changed between the parts; run the "
            "command without --part to make again what does not fit"
        )
    if unknown := doubtful & gone:
        say(
            f"note: parts saw {_names(corpus, unknown)} with different times of change, and it cannot be read here: "
            "whether they read the same text was not checked"
        )


def _with_other_digests(records: Sequence[BlockRecord], work: WorkFolder) -> set[FileKey]:
    """Return the files of blocks that were compared with others as other text than their shards were made of."""
    digests = work.all_digests()
    found: set[FileKey] = set()
    for record in records:
        expected = work.digests_path(record.block, text_key(record.files, record.input_sha256))
        if any(path != expected for path in digests.get(record.block, ())):
            found |= {(file.source, file.description["name"]) for file in record.files}
    return found


def _corpus_now(plan: Mapping[str, Any]) -> tuple[Corpus, set[FileKey]]:
    """Return the corpus of a plan with its files as they are now, and those that cannot be read."""
    files, gone = [], set()
    for described in plan.get("inputs", ()):
        fields = {name: value for name, value in described.items() if name != "sample_sha256"}
        file = InputFile(**fields | {"row_groups": tuple(fields["row_groups"])})
        try:
            found = os.stat(file.path)
            file = dataclasses.replace(file, stored_bytes=found.st_size, modified_ns=found.st_mtime_ns)
        except OSError:
            gone.add((file.source, file.name))
        files.append(file)
    settings = CorpusSettings(arguments=(), max_expansion=ANY_EXPANSION)
    return Corpus(_source_names(plan), tuple(files), settings=settings), gone


def _stale(
    plan: Mapping[str, Any],
    corpus: Corpus,
    records: Sequence[BlockRecord],
    doubtful: Collection[FileKey],
    gone: Collection[FileKey],
) -> set[FileKey]:
    """Return which of the doubtful files have other text than the records say, of those that can be read."""
    block_bytes = plan["settings"]["shard_bytes"]
    files = {record.block: _keys(files_of_block(corpus, record.block, block_bytes)) for record in records}
    expected = {
        record.block: record.input_sha256
        for record in records
        if files[record.block] & set(doubtful) and not files[record.block] & set(gone)
    }
    hashes = hashes_now(corpus, list(expected), block_bytes, 1)
    stale: set[FileKey] = set()
    for block, input_sha256 in expected.items():
        if hashes[block] != input_sha256:
            stale |= files[block] & set(doubtful)
    return stale


def _source_names(plan: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(source["name"] for source in plan["sources"])


def _keys(files: Iterable[InputFile]) -> set[FileKey]:
    return {(file.source, file.name) for file in files}


def _names(corpus: Corpus, files: Collection[FileKey]) -> str:
    names = [f"{corpus.source_names[source]}/{name}" for source, name in sorted(files)]
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else "")
