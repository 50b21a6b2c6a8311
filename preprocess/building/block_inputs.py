"""What a block is made of: its files, and what the parsing of its bytes depends on beside them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from preprocess.building.work import BlockFile
from preprocess.corpus.corpus import Corpus, InputFile
from preprocess.corpus.layouts import MEDIAWIKI
from preprocess.corpus.mediawiki import namespace_names
from preprocess.corpus.records import TextRecords


def files_of_block(corpus: Corpus, block: int, block_bytes: int) -> Sequence[InputFile]:
    """Return the files that have bytes in a block's range."""
    return corpus.files_between(block * block_bytes, (block + 1) * block_bytes)


def block_files(corpus: Corpus, block: int, block_bytes: int) -> list[BlockFile]:
    """Return what a block's record says of the files that have bytes in its range."""
    return [
        BlockFile(
            source=file.source,
            description=_description(file, corpus.settings.max_expansion),
            stored_bytes=file.stored_bytes,
            modified_ns=file.modified_ns,
        )
        for file in files_of_block(corpus, block, block_bytes)
    ]


def text_key(files: Sequence[BlockFile], input_sha256: str) -> str:
    """Return one digest (hex) of all that decides a block's documents: its bytes, and how they are parsed."""
    described = [[file.source, file.description] for file in files]
    return hashlib.sha256(json.dumps([described, input_sha256], sort_keys=True).encode()).hexdigest()


def _description(file: InputFile, max_expansion: int) -> dict[str, Any]:
    if file.layout != MEDIAWIKI:
        return file.description()
    return file.description() | {"namespaces_sha256": _namespaces_digest(file, max_expansion)}


@functools.lru_cache(maxsize=64)
def _namespaces_digest(file: InputFile, max_expansion: int) -> str:
    """Return a digest of the names that a dump's beginning lists: links to them are cut out of all its pages."""
    records = TextRecords(file, max_expansion=max_expansion)
    try:
        names = sorted(namespace_names(records.text.head.decode(errors="replace")))
    finally:
        records.close()
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
