"""What a worker does: one block of text to its shard files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from preprocess.building.encoding import Documents, encode_block
from preprocess.corpus.inputs import Corpus
from preprocess.manifest import ShardEntry
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, shard_name
from preprocess.shards import write_shard
from preprocess.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class BlockReport:
    """What one block gave; entries are None where it has no document.

    ``source_counts`` maps ("kept" or "heldout", source) to the numbers of documents, sentences and tokens.
    """

    kept: ShardEntry | None
    heldout: ShardEntry | None
    input_sha256: str
    dropped: Counter[str]
    source_counts: dict[tuple[str, int], tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardJob:
    """Encodes a block and writes its shards; see ``workers.Job``."""

    corpus: Corpus
    output: Path
    shard_bytes: int
    heldout: float
    compression: str

    def start(self) -> Tokenizer:
        """Load the tokenizer that travels with the shards."""
        return load_tokenizer(self.output / TOKENIZER_FOLDER)

    def run(self, state: Tokenizer, block: int, progress: Callable[[int], None]) -> BlockReport:
        """Encode and write one block."""
        encoded = encode_block(self.corpus, block, self.shard_bytes, state.encoder, self.heldout, progress)
        entries = {}
        counts = {}
        for part, documents, folder in (
            ("kept", encoded.kept, self.output),
            ("heldout", encoded.heldout, self.output / HELDOUT_FOLDER),
        ):
            entries[part] = self._write(folder / shard_name(block), documents, encoded.input_sha256)
            for source in np.unique(documents.source).tolist():
                counts[part, source] = documents.counts(source)
        return BlockReport(entries["kept"], entries["heldout"], encoded.input_sha256, encoded.dropped, counts)

    def _write(self, path: Path, documents: Documents, input_sha256: str) -> ShardEntry | None:
        if not len(documents.source):
            return None
        return write_shard(path, documents.arrays(), input_sha256, self.compression)
