"""What a worker does with one block of text: its digests (to find duplicates), or its shards."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.building.block_inputs import block_files, files_of_block, text_key
from preprocess.building.encoding import BlockEncoder, EncodedPart
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, SourceCounts, WorkFolder, digest_of_file
from preprocess.cleaning.drops import Drops
from preprocess.cleaning.duplicates import (
    SentenceFilter,
    document_digest,
    read_duplicates,
    sentence_digest,
    without_duplicates,
    write_digests,
)
from preprocess.cleaning.sentences import Splitter, build_splitter, split_sentences
from preprocess.cleaning.steps import cleaning_steps
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import Corpus
from preprocess.corpus.document import Document
from preprocess.files import open_atomically
from preprocess.manifest import ShardEntry
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, shard_name
from preprocess.shards import write_shard
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.words import Segmenter, build_segmenter

Progress = Callable[[int], None]


class TextDigest:
    """Hashes a block's text as it is read, and reports progress."""

    def __init__(self, progress: Progress) -> None:
        self._digest = hashlib.sha256()
        self._progress = progress

    def __call__(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._digest.update(data)
        self._progress(len(data))

    @property
    def hex(self) -> str:
        """sha256 of all bytes so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class HashJob:
    """The sha256 of a block's text; see ``workers.Job``."""

    corpus: Corpus
    block_bytes: int

    def start(self) -> BlockReader:
        """Open nothing yet."""
        return BlockReader(self.corpus, self.block_bytes)

    def run(self, state: BlockReader, block: int, progress: Progress) -> str:
        """Hash one block's text."""
        digest = TextDigest(progress)
        for data in state.raw(block):
            digest(data)
        return digest.hex


@dataclass(frozen=True)
class DigestJob:
    """The digests of a block's documents or sentences, after cleaning: pass 1 of finding duplicates."""

    settings: ShardSettings
    corpus: Corpus
    output: Path

    def start(self) -> BlockReader:
        """Open nothing yet."""
        return BlockReader(self.corpus, self.settings.shard_bytes, Drops())

    def run(self, state: BlockReader, block: int, progress: Progress) -> None:
        """Write the digests of one block."""
        digest = TextDigest(progress)
        cleaning = self.settings.cleaning
        documents = cleaning_steps(cleaning, Drops())(state.documents(block, digest))
        if cleaning.deduplicate == "documents":
            digests = [document_digest(document) for document in documents]
        else:
            splitter = build_splitter(cleaning.split_sentences)
            digests = [
                sentence_digest(sentence) for document in documents for sentence in split_sentences(document, splitter)
            ]
        key = text_key(block_files(self.corpus, block, self.settings.shard_bytes), digest.hex)
        write_digests(WorkFolder(self.output).digests_path(block, key), digests)


@dataclass(frozen=True)
class _State:
    """What a worker loads once."""

    tokenizer: Tokenizer
    segmenter: Segmenter | None
    splitter: Splitter
    reader: BlockReader


@dataclass(frozen=True)
class ShardJob:
    """Cleans and encodes a block, writes its shards and then its record; see ``workers.Job``."""

    settings: ShardSettings
    corpus: Corpus
    output: Path

    def start(self) -> _State:
        """Load the tokenizer that travels with the shards, and the word segmenter."""
        settings = self.settings
        segmenter = None
        if settings.word_segmenter:
            segmenter = build_segmenter(settings.word_segmenter, settings.user_dictionary)
        return _State(
            load_tokenizer(self.output / TOKENIZER_FOLDER),
            segmenter,
            build_splitter(settings.cleaning.split_sentences),
            BlockReader(self.corpus, settings.shard_bytes),
        )

    def run(self, state: _State, block: int, progress: Progress) -> None:
        """Do one block."""
        work = WorkFolder(self.output)
        digest = TextDigest(progress)
        labels = {label: index for index, label in enumerate(self.corpus.labels)} if self.corpus.labels else None
        num_replaced = state.reader.num_replaced
        drops = Drops(keep_texts=self.settings.dropped is not None)
        state.reader.drops = drops
        encoder = BlockEncoder(
            state.tokenizer, state.segmenter, labels, self.corpus.has_second, self.settings.heldout, drops
        )
        documents = cleaning_steps(self.settings.cleaning, drops)(state.reader.documents(block, digest))
        for document, sentences, second in self._sentences(documents, state, work.duplicates_path(block), drops):
            encoder.add(document, sentences, second)
        kept, heldout = encoder.finish()
        if drops.keep_texts:
            self._write_dropped(work.dropped_path(block), drops, block)
        num_replaced = state.reader.num_replaced - num_replaced
        self._write(work, block, digest.hex, kept, heldout, drops.counts, num_replaced)

    def _write_dropped(self, path: Path, drops: Drops, block: int) -> None:
        files = files_of_block(self.corpus, block, self.settings.shard_bytes)
        with open_atomically(path) as file:
            text = io.TextIOWrapper(file, "utf-8", errors="surrogatepass")
            drops.write(text, [file.path for file in files])
            text.detach()  # writes what is left, and leaves the file open

    def _sentences(
        self, documents: Iterator[Document], state: _State, duplicates: Path, drops: Drops
    ) -> Iterator[tuple[Document, Sequence[str], Sequence[str]]]:
        """Yield each document that stays, with the sentences of its two texts."""
        mode = self.settings.cleaning.deduplicate
        if mode == "documents":
            documents = without_duplicates(documents, read_duplicates(duplicates), drops)
        stay = SentenceFilter(read_duplicates(duplicates), drops) if mode == "sentences" else None
        for document in documents:
            sentences = split_sentences(document, state.splitter)
            if stay is not None and not (sentences := stay.keep(sentences, document)):
                continue
            second = state.splitter.split(document.second) if document.second else []
            yield document, sentences, second

    def _write(
        self,
        work: WorkFolder,
        block: int,
        digest: str,
        kept: EncodedPart,
        heldout: EncodedPart,
        dropped: dict[str, int],
        num_replaced: int,
    ) -> None:
        entries: dict[str, ShardEntry | None] = {}
        counts = []
        for part, encoded, folder in (
            ("kept", kept, self.output),
            ("heldout", heldout, self.output / HELDOUT_FOLDER),
        ):
            entries[part] = None
            if encoded.arrays is not None:
                path = folder / shard_name(block)
                entries[part] = write_shard(path, encoded.arrays, digest, self.settings.compression)
            counts += [SourceCounts(part, source, *numbers) for source, numbers in encoded.counts.items()]
        work.write_record(
            BlockRecord(
                block=block,
                kept=entries["kept"],
                heldout=entries["heldout"],
                input_sha256=digest,
                files=block_files(self.corpus, block, self.settings.shard_bytes),
                duplicates_sha256=digest_of_file(work.duplicates_path(block)),
                dropped={reason: count for reason, count in dropped.items() if count},
                num_replaced=num_replaced,
                source_counts=counts,
            )
        )
