"""Makes a shard folder out of a corpus: blocks to workers, results to manifests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.building.job import BlockReport, ShardJob
from preprocess.building.manifests import summary, write_manifests
from preprocess.building.recognition import recognise
from preprocess.corpus.detection import LAYOUTS
from preprocess.corpus.inputs import Corpus, open_corpus
from preprocess.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, claim
from preprocess.progress import progress_bar
from preprocess.shards import COMPRESSIONS
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.workers import run_blocks

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
                f"shard_bytes is {self.shard_bytes}: needs {MIN_SHARD_BYTES} or more ({DEFAULT_SHARD_BYTES} is usual)"
            )
        if self.layout not in ("auto", *LAYOUTS):
            found.append(f"layout is {self.layout!r}; allowed: auto, {', '.join(LAYOUTS)}")
        if self.compression not in COMPRESSIONS:
            found.append(f"compression is {self.compression!r}; allowed: {', '.join(COMPRESSIONS)}")
        if isinstance(self.corpus, str) or not self.corpus:
            found.append(f"corpus is {self.corpus!r}: a list of at least one file, folder or pattern is needed")
        if len(self.corpus) > MAX_SOURCES:
            found.append(f"{len(self.corpus):,} --corpus arguments: at most {MAX_SOURCES:,} sources; give folders")
        return found


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
    _check_output_apart(output, corpus)
    job = ShardJob(corpus, output, settings.shard_bytes, settings.heldout, settings.compression)
    if (output / MANIFEST_NAME).is_file():
        return recognise(read_manifest(output), tokenizer, job, settings.workers, say)
    with claim(output) as had_leftovers:
        if had_leftovers:
            say(f"{output}: removed what an unfinished run had left")
        blocks = _encode(job, tokenizer, settings.workers)
        manifest = write_manifests(job, tokenizer, blocks)
    for line in summary(manifest):
        say(line)
    return manifest


def _encode(job: ShardJob, tokenizer: Tokenizer, num_workers: int) -> list[BlockReport]:
    tokenizer.save(job.output / TOKENIZER_FOLDER)
    if job.heldout:
        (job.output / HELDOUT_FOLDER).mkdir()
    num_blocks = job.corpus.num_blocks(job.shard_bytes)
    with progress_bar("encoding", job.corpus.num_bytes) as progress:
        return run_blocks(job, range(num_blocks), num_workers, progress)


def _check_output_apart(output: Path, corpus: Corpus) -> None:
    inside = os.path.join(os.path.abspath(output), "")
    for file in corpus.files:
        if os.path.abspath(file.path).startswith(inside):
            raise ValueError(f"--corpus contains {file.path}, which lies in --output {output}; give another --output")
