"""Tells whether a finished shard folder is what a command would make."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from preprocess.building.job import ShardJob
from preprocess.building.manifests import decisive_settings, describe_sources, joint_digest
from preprocess.corpus.inputs import Corpus
from preprocess.manifest import Manifest, Source
from preprocess.output_folder import finish
from preprocess.progress import progress_bar
from preprocess.shards import library_versions
from preprocess.tokenizer import Tokenizer
from preprocess.workers import run_blocks


def recognise(
    manifest: Manifest, tokenizer: Tokenizer, job: ShardJob, num_workers: int, say: Callable[[str], None]
) -> Manifest:
    """Return the manifest of a finished folder if the same tokenizer, settings and inputs made it.

    Raises:
        ValueError: naming what differs.
    """
    folder = manifest.folder
    way_out = f"give another --output, or delete {folder} to make it again"
    different = _differences(manifest, tokenizer, job)
    if different:
        raise ValueError(f"{folder} holds finished shards made differently: {'; '.join(different)}; {way_out}")
    num_blocks = job.corpus.num_blocks(job.shard_bytes)
    with progress_bar("comparing inputs", job.corpus.num_bytes) as progress:
        digests = run_blocks(HashJob(job.corpus, job.shard_bytes), range(num_blocks), num_workers, progress)
    if joint_digest(digests) != manifest.settings["input_sha256"]:
        raise ValueError(f"{folder} holds finished shards of other text: the input files have changed; {way_out}")
    finish(folder)
    say(f"{folder} is complete: the same settings and inputs made it; nothing to do")
    if manifest.settings["versions"] != library_versions():
        say(f"note: it was made with {manifest.settings['versions']}, and installed are {library_versions()}")
    return manifest


def _differences(manifest: Manifest, tokenizer: Tokenizer, job: ShardJob) -> list[str]:
    found = manifest.settings | {"tokenizer": manifest.tokenizer["digest"]}
    different = []
    for name, value in (decisive_settings(job) | {"tokenizer": tokenizer.digest}).items():
        if found.get(name) != value:
            different.append(f"{name} was {found.get(name)} and is {value}")
    before = [replace(source, num_documents=0, num_sentences=0, num_tokens=0) for source in manifest.sources]
    now = describe_sources(job.corpus, Counter())
    if before != now:
        different.append(f"inputs were {_names(before)} and are {_names(now)}")
    return different


def _names(sources: list[Source]) -> str:
    texts = []
    for source in sources:
        num_bytes = sum(file["num_bytes"] for file in source.files)
        texts.append(f"{source.name} ({len(source.files):,} files, {num_bytes:,} bytes, {source.layout})")
    return ", ".join(texts)


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
