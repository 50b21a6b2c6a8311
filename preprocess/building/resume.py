"""What an unfinished run has done and what of it still fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from preprocess.building.job import HashJob, block_files, files_of_block
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, WorkFolder
from preprocess.corpus.corpus import Corpus
from preprocess.manifest import ShardEntry, check_shard
from preprocess.output_folder import HELDOUT_FOLDER
from preprocess.progress import progress_bar
from preprocess.workers import run_blocks


def keep_what_fits(
    settings: ShardSettings, corpus: Corpus, work: WorkFolder, blocks: Sequence[int], say: Callable[[str], None]
) -> set[int]:
    """Return the blocks that are done: of the same text, with whole shards. Anything else of ``blocks`` is removed.

    Args:
        blocks: those of this run; other parts' files are left alone.
    """
    own = set(blocks)
    num_blocks = corpus.num_blocks(settings.shard_bytes)
    on_disk = work.blocks_on_disk()
    for block in on_disk:
        if settings.part is None and block >= num_blocks:
            work.forget(block)
    known = [block for block in on_disk if block in own and work.read_record(block) is not None]
    digested = [block for block in blocks if work.known_digests(block) and block not in known]
    job = HashJob(corpus, settings.shard_bytes)
    checked = sorted({*known, *digested})
    with progress_bar("comparing with what is done", len(checked) * settings.shard_bytes) as progress:
        hashes = dict(zip(checked, run_blocks(job, checked, settings.workers, progress), strict=True))
    for block in checked:
        for path in work.known_digests(block):
            if path != work.digests_path(block, hashes[block]):
                path.unlink()
    done: set[int] = set()
    stale: set[int] = set()
    for block in known:
        record = work.read_record(block)
        assert record is not None
        same_files = record.files == block_files(corpus, block, settings.shard_bytes)
        (done if same_files and record.input_sha256 == hashes[block] and _is_whole(work, record) else stale).add(block)
    for block in own.intersection(on_disk) - done:
        work.forget(block)
    if stale:
        names = sorted({file.name for block in stale for file in files_of_block(corpus, block, settings.shard_bytes)})
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        say(f"note: {len(stale):,} finished blocks do not fit the text any more ({shown}) and are made again")
    return done


def _is_whole(work: WorkFolder, record: BlockRecord) -> bool:
    parts: list[tuple[ShardEntry | None, str]] = [(record.kept, ""), (record.heldout, HELDOUT_FOLDER)]
    for entry, folder in parts:
        if entry is not None:
            try:
                check_shard(work.output / folder, entry)
            except (ValueError, OSError):
                return False
    return True
