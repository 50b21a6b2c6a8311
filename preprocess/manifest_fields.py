"""Every field of manifest.json, checked: a folder may come from anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

MAX_NUMBER = 1 << 48  # of bytes, tokens, ...: sums of them stay within int64
MAX_VOCAB_SIZE = 1 << 32  # ids are uint32 at most
MAX_SOURCES = 1 << 16  # document_source is uint16
SHOWN = 60  # characters of a wrong value
SHA256 = re.compile(r"[0-9a-f]{64}")
COUNTS = ("num_documents", "num_sentences", "num_tokens")
DIGESTS = ("sha256", "content_sha256", "input_sha256")


def check_fields(payload: Any) -> None:
    """Check type and range of everything in a manifest of format version 1, without its digest.

    Settings and counts may have any further names; what is in them is checked where this program reads it.

    Raises:
        ValueError: naming the field, the value and what it must be; the caller names the file.
    """
    _keys(payload, "the manifest", ("format_version", "tokenizer", "sources", "shards", "settings", "counts"), "labels")
    _check_tokenizer(payload["tokenizer"])
    _check_sources(payload["sources"])
    _check_shards(payload["shards"])
    _check_settings(payload["settings"])
    for name, count in _object(payload["counts"], "counts").items():
        _number(count, f"counts.{name}")
    if "labels" in payload:
        labels = _list(payload["labels"], "labels")
        for index, label in enumerate(labels):
            _text(label, f"labels[{index}]")
        if not labels or len(set(labels)) != len(labels):
            raise _wrong("labels", labels, "at least one name, and no name twice, is needed where there is this field")


def _check_tokenizer(tokenizer: Any) -> None:
    _keys(tokenizer, "tokenizer", ("type", "digest", "vocab_size"), "files")
    _text(tokenizer["type"], "tokenizer.type")
    _sha256(tokenizer["digest"], "tokenizer.digest")
    _number(tokenizer["vocab_size"], "tokenizer.vocab_size", least=1, most=MAX_VOCAB_SIZE)
    for name, digest in _object(tokenizer.get("files", {}), "tokenizer.files").items():
        check_file_name(name, "tokenizer.files")
        _sha256(digest, f"tokenizer.files[{name!r}]")


def _check_sources(sources: Any) -> None:
    if len(_list(sources, "sources")) > MAX_SOURCES:
        raise ValueError(f"sources has {len(sources):,} elements, and {MAX_SOURCES:,} are the most")
    for index, source in enumerate(sources):
        where = f"sources[{index}]"
        _keys(source, where, ("name", "layout", "files", *COUNTS))
        _text(source["name"], f"{where}.name")
        _text(source["layout"], f"{where}.layout")
        for name in COUNTS:
            _number(source[name], f"{where}.{name}")
        for number, file in enumerate(_list(source["files"], f"{where}.files")):
            _keys(file, f"{where}.files[{number}]", ("name", "num_bytes", "layout"), "text_field")
            for name, value in file.items():
                check = _number if name == "num_bytes" else _text
                check(value, f"{where}.files[{number}].{name}")
    _check_different([source["name"] for source in sources], "sources", "name")


def _check_shards(shards: Any) -> None:
    for index, shard in enumerate(_list(shards, "shards")):
        where = f"shards[{index}]"
        _keys(shard, where, ("file", "num_bytes", *DIGESTS, *COUNTS))
        check_file_name(shard["file"], f"{where}.file")
        for name in DIGESTS:
            _sha256(shard[name], f"{where}.{name}")
        for name in ("num_bytes", *COUNTS):
            _number(shard[name], f"{where}.{name}", least=1)
    _check_different([shard["file"] for shard in shards], "shards", "file")


def _check_settings(settings: Any) -> None:
    _object(settings, "settings")
    if "compression" in settings:
        _text(settings["compression"], "settings.compression")
    if "input_sha256" in settings:
        _sha256(settings["input_sha256"], "settings.input_sha256")
    for name, version in _object(settings.get("versions", {}), "settings.versions").items():
        _text(version, f"settings.versions.{name}")
    _check_shares(settings.get("heldout", 0), "settings.heldout")


def _check_shares(heldout: Any, field: str) -> None:
    """Check a share of the documents, or a merged folder's list of them."""
    if isinstance(heldout, list):
        for index, share in enumerate(heldout):
            _check_shares(share, f"{field}[{index}]")
    elif isinstance(heldout, bool) or not isinstance(heldout, int | float) or not 0 <= heldout < 1:
        raise _wrong(field, heldout, "a share from 0 to below 1, or a list of such, is needed")


def check_file_name(name: Any, field: str) -> None:
    """Refuse what is not the plain name of a file."""
    _text(name, field)
    if name in ("", ".", "..") or re.search(r"[/\\]", name) or not name.isprintable():
        raise _wrong(field, name, "it is not a file of its folder")


def _keys(value: Any, field: str, needed: Sequence[str], *optional: str) -> None:
    """Refuse what is no object with exactly these keys."""
    _object(value, field)
    for name in needed:
        if name not in value:
            raise ValueError(f"{field} has no field {name!r}")
    for name in value:
        if name not in needed and name not in optional:
            raise ValueError(f"{field} has the unknown field {name[:SHOWN]!r}")


def _check_different(values: list[str], field: str, what: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise _wrong(f"{field}: {what}", value, "another has the same")
        seen.add(value)


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(field, value, "an object is needed")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(field, value, "a list is needed")
    return value


def _text(value: Any, field: str) -> None:
    if not isinstance(value, str):
        raise _wrong(field, value, "a text is needed")


def _sha256(value: Any, field: str) -> None:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise _wrong(field, value, "64 hexadecimal digits in lower case are needed")


def _number(value: Any, field: str, least: int = 0, most: int = MAX_NUMBER) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise _wrong(field, value, f"a whole number from {least} to 2^{math.log2(most):.0f} is needed")


def _wrong(field: str, value: Any, needed: str) -> ValueError:
    shown = repr(value)
    return ValueError(f"{field} is {shown if len(shown) <= SHOWN else shown[:SHOWN] + '...'}, and {needed}")
