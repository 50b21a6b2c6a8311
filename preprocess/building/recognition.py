"""Tells whether a finished shard folder is what a command would make."""

from __future__ import annotations

from collections.abc import Callable

from preprocess.building.job import HashJob
from preprocess.building.manifests import joint_digest
from preprocess.building.plan import (
    input_differences,
    make_plan,
    plan_of,
    setting_differences,
    version_differences,
)
from preprocess.building.settings import ShardSettings
from preprocess.corpus.corpus import Corpus
from preprocess.manifest import Manifest
from preprocess.output_folder import finish
from preprocess.progress import progress_bar
from preprocess.tokenizer import Tokenizer
from preprocess.workers import run_blocks


def recognise(
    manifest: Manifest, settings: ShardSettings, tokenizer: Tokenizer, corpus: Corpus, say: Callable[[str], None]
) -> Manifest:
    """Return the manifest of a finished folder if the same tokenizer, settings and inputs made it.

    Raises:
        ValueError: naming what differs.
    """
    folder = manifest.folder
    way_out = f"give another --output, or delete {folder} to make it again"
    before, now = plan_of(manifest), make_plan(settings, corpus, tokenizer)
    different = setting_differences(before, now)
    if changes := input_differences(before, now):
        different.append(f"the inputs have changed: {', '.join(changes)}")
    if different:
        raise ValueError(f"{folder} holds finished shards made differently: {'; '.join(different)}; {way_out}")
    job = HashJob(corpus, settings.shard_bytes)
    blocks = range(corpus.num_blocks(settings.shard_bytes))
    with progress_bar("comparing inputs", corpus.num_bytes) as progress:
        digests = run_blocks(job, blocks, settings.workers, progress)
    if joint_digest(digests) != manifest.settings["input_sha256"]:
        raise ValueError(f"{folder} holds finished shards of other text: the input files have changed; {way_out}")
    finish(folder)
    say(f"{folder} is complete: the same settings and inputs made it; nothing to do")
    if changes := version_differences(before, now):
        say(f"note: it was made with other versions: {', '.join(changes)}")
    return manifest
