"""The versions of the libraries that decide the documents and the bytes of shards."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from preprocess.building.settings import ShardSettings
from preprocess.cleaning.settings import cleaning_versions, python_versions
from preprocess.corpus.corpus import Corpus
from preprocess.corpus.layouts import MEDIAWIKI, PARQUET
from preprocess.shards import library_versions as library_versions
from preprocess.tokenizer import Tokenizer

TOKENIZER_PACKAGES = {"bpe": "tiktoken", "unigram": "sentencepiece", "sentencepiece_bpe": "sentencepiece"}
LAYOUT_PACKAGES = {MEDIAWIKI: "mwparserfromhell", PARQUET: "pyarrow"}


def plan_versions(settings: ShardSettings, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, str]:
    """Return library -> version, for a manifest; the word segmenter's is with the settings."""
    used = {LAYOUT_PACKAGES[layout] for layout in {file.layout for file in corpus.files} if layout in LAYOUT_PACKAGES}
    if tokenizer.type in TOKENIZER_PACKAGES:
        used.add(TOKENIZER_PACKAGES[tokenizer.type])
    return library_versions() | cleaning_versions(settings.cleaning) | versions_here(sorted(used))


def versions_here(names: Iterable[str]) -> dict[str, str]:
    """Return library -> version in this process; "missing" for one that is not installed."""
    known = library_versions() | python_versions()
    return {name: known.get(name) or _installed(name) for name in names}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
