"""Finds the exact duplicates of a whole corpus: pass 1 over its blocks, and the lists of what each block leaves out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preprocess.building.job import DigestJob
from preprocess.building.settings import ShardSettings
from preprocess.building.work import WorkFolder
from preprocess.cleaning.duplicates import find_duplicates
from preprocess.corpus.corpus import Corpus
from preprocess.progress import progress_bar


def mark_duplicates(
    settings: ShardSettings, corpus: Corpus, work: WorkFolder, own: Sequence[int], run: Callable[..., list[Any]]
) -> int:
    """Write the list of duplicates of each of this run's blocks and return how many there are in the whole corpus.

    Digests that are there already, of this run or of other parts, are used; this run's own blocks come first, so parts
    that start together share the work, and a part that runs alone does it all.

    Args:
        own: the blocks of this run.
        run: executor of a job, see ``workers.run_blocks``.
    """
    num_blocks = corpus.num_blocks(settings.shard_bytes)
    job = DigestJob(settings, corpus, work.output)
    others = sorted(set(range(num_blocks)) - set(own))
    for blocks in (list(own), others):
        known = work.all_digests()
        missing = [block for block in blocks if len(known.get(block, ())) != 1]
        with progress_bar("finding duplicates", len(missing) * settings.shard_bytes) as progress:
            run(job, missing, settings.workers, progress)
    known = work.all_digests()
    files = [known[block][0] for block in range(num_blocks)]
    part = "scratch-{}-of-{}-".format(*settings.share)
    for dead in work.path.glob(f"{part}*"):  # of a run of this part that was killed: two do not run at once
        shutil.rmtree(dead, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work.path, prefix=part) as folder:
        found: list[Path | None] = [None] * num_blocks
        for block in own:
            found[block] = Path(folder) / work.duplicates_path(block).name
        with progress_bar("comparing digests", sum(file.stat().st_size for file in files)) as progress:
            num_duplicates = find_duplicates(files, found, progress=progress)
        for block in own:
            os.replace(Path(folder) / work.duplicates_path(block).name, work.duplicates_path(block))
    return num_duplicates
