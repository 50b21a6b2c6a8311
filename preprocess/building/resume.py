"""What an unfinished run has done and what of it still fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.building.block_inputs import block_files, files_of_block, text_key
from preprocess.building.job import HashJob
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, WorkFolder
from preprocess.corpus.corpus import Corpus
from preprocess.manifest import ShardEntry, check_shard
from preprocess.output_folder import HELDOUT_FOLDER, shard_name
from preprocess.progress import progress_bar
from preprocess.workers import run_blocks

MAX_NAMED = 5


def keep_what_fits(
    settings: ShardSettings, corpus: Corpus, work: WorkFolder, blocks: Sequence[int], say: Callable[[str], None]
) -> set[int]:
    """Return the blocks that are done: of the same text, with whole shards. Anything else of ``blocks`` is removed.

    Args:
        blocks: those of this run; other parts' files are left alone.
    """
    num_blocks = corpus.num_blocks(settings.shard_bytes)
    on_disk = work.blocks_on_disk()
    for block in on_disk:
        if settings.part is None and block >= num_blocks:
            work.forget(block)
    own = set(blocks)
    records = {block: work.read_record(block) for block in on_disk if block in own}
    digests = {block: paths for block, paths in work.all_digests().items() if block in own}
    looked_at = sorted({block for block, record in records.items() if record} | digests.keys())
    hashes = hashes_now(corpus, looked_at, settings.shard_bytes, settings.workers)
    files = {block: block_files(corpus, block, settings.shard_bytes) for block in looked_at}
    for block, paths in digests.items():
        for path in paths:
            if path != work.digests_path(block, text_key(files[block], hashes[block])):
                path.unlink()
    done: set[int] = set()
    stale: set[int] = set()
    damaged: set[int] = set()
    for block, record in records.items():
        if record is not None:
            fits = text_key(record.files, record.input_sha256) == text_key(files[block], hashes[block])
            (stale if not fits else done if _is_whole(work, record, settings) else damaged).add(block)
    for block in records.keys() - done:
        work.forget(block)
    if stale:
        names = sorted({file.name for block in stale for file in files_of_block(corpus, block, settings.shard_bytes)})
        say(f"note: {len(stale):,} finished blocks do not fit the text any more ({_some(names)}) and are made again")
    if damaged:
        names = [shard_name(block) for block in sorted(damaged)]
        say(f"note: {len(damaged):,} finished blocks lack a file, or it is damaged ({_some(names)}); made again")
    return done


def hashes_now(corpus: Corpus, blocks: Sequence[int], block_bytes: int, num_workers: int) -> dict[int, str]:
    """Return the sha256 of the bytes that blocks have now."""
    job = HashJob(corpus, block_bytes)
    with progress_bar("comparing with what is done", len(blocks) * block_bytes) as progress:
        return dict(zip(blocks, run_blocks(job, blocks, num_workers, progress), strict=True))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")


def _is_whole(work: WorkFolder, record: BlockRecord, settings: ShardSettings) -> bool:
    if not work.is_there(record, settings.dropped is not None):
        return False
    parts: list[tuple[ShardEntry | None, str]] = [(record.kept, ""), (record.heldout, HELDOUT_FOLDER)]
    for entry, folder in parts:
        if entry is not None:
            try:
                check_shard(work.output / folder, entry)
            except (ValueError, OSError):
                return False
    return True
