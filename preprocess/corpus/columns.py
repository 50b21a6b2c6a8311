"""Records with fields: JSON lines, and lines with columns separated by tabs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from preprocess.corpus.document import Document

if TYPE_CHECKING:
    from preprocess.corpus.records import TextRecords

MAX_SHOWN = 12
LABEL_NAMES = ("label", "labels")
TEXT_NAMES = ("text", "text_a", "sentence", "sentence1")
SECOND_NAMES = ("text_b", "sentence2")
SOURCE_NAMES = ("source", "src")
TARGET_NAMES = ("target", "tgt")


class IncompleteRecordError(Exception):
    """A record without what its layout needs; the text says what is wrong."""


def parse_json(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each line, from the field that holds the text."""
    path, source, field = parser.file.path, parser.file.source, parser.file.text_field
    for line in run.split(b"\n"):
        record = line.strip()
        if record:
            text = _json_text(parser, offset, record, field)
            if text:
                yield Document(text, source, False, None, None, path, offset)
        offset += len(line) + 1


def _json_text(parser: TextRecords, offset: int, record: bytes, field: str) -> str:
    try:
        decoded = record.decode()
    except UnicodeDecodeError:
        decoded = parser.invalid(record, offset)
        if not decoded:
            return ""
    try:
        value = _load(decoded)
        text = value.get(field) if type(value) is dict else None
        if type(text) is not str:
            text = _find_text(value, field)
    except IncompleteRecordError as problem:
        parser.incomplete(record, offset, str(problem))
        return ""
    if (b"\\ud" in record or b"\\uD" in record) and not _is_encodable(text):
        text = _without_surrogates(parser, offset, record, text)
        if not text:
            return ""
    text = normal_lines(text)
    if not text:
        parser.drop_empty(record, offset)
    return text


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IncompleteRecordError(f"it is not JSON ({error}); in jsonl every line is one JSON object") from None


def _find_text(value: Any, field: str) -> str:
    """Return the text of a field, through objects; "" for null."""
    if not isinstance(value, dict):
        raise IncompleteRecordError(f"it is a JSON {_kind(value)}; in jsonl every line is one JSON object")
    found: Any = value
    for part in [field] if field in value else field.split("."):
        if not isinstance(found, dict) or part not in found:
            names = ", ".join(list(value)[:MAX_SHOWN]) + (", ..." if len(value) > MAX_SHOWN else "")
            raise IncompleteRecordError(
                f"the object has no field {field!r}; it has: {names or 'none'}; name the one with the text by "
                "--text_field"
            )
        found = found[part]
    if found is not None and not isinstance(found, str):
        raise IncompleteRecordError(
            f"the field {field!r} holds a JSON {_kind(found)}, and text is needed; give another --text_field"
        )
    return found or ""


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    kinds = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_surrogates(parser: TextRecords, offset: int, record: bytes, text: str) -> str:
    r"""Treat half of a surrogate pair (such as an escape \ud83d alone) as bytes that are not UTF-8 are treated."""
    if parser.invalid_utf8 == "replace":
        parser.num_replaced += 1
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if parser.invalid_utf8 == "drop":
        parser.drops.add_record("documents_invalid_utf8", record, parser.file.path, offset)
        return ""
    raise parser.error(
        offset,
        "its text has half of a surrogate pair, which is no character (an escape such as \\ud83d alone); give "
        "--invalid_utf8 drop or --invalid_utf8 replace",
    )


def normal_lines(text: str) -> str:
    r"""Return a text without white space at its ends, its lines ending with \n."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.strip()


def parse_labelled(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each line ``label<TAB>text[<TAB>text_b]``."""
    path, source = parser.file.path, parser.file.source
    for place, line, columns in _rows(parser, offset, run):
        if len(columns) not in (2, 3):
            wanted = "label<TAB>text or label<TAB>text<TAB>text_b"
            parser.incomplete(line, place, f"{len(columns)} columns, and labelled_tsv needs {wanted}")
            continue
        label, text = columns[0].strip(), columns[1].strip()
        if not label:
            parser.incomplete(line, place, "its label (the first column) is empty")
            continue
        second = columns[2].strip() or None if len(columns) == 3 else None
        if text:
            yield Document(text, source, False, second, label, path, place)
        else:
            parser.drop_empty(line, place)


def parse_paired(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each line ``source<TAB>target``."""
    path, source = parser.file.path, parser.file.source
    for place, line, columns in _rows(parser, offset, run):
        if len(columns) != 2:
            parser.incomplete(line, place, f"{len(columns)} columns, and paired_tsv needs source<TAB>target")
            continue
        text, target = columns[0].strip(), columns[1].strip()
        if text and target:
            yield Document(text, source, False, target, None, path, place)
        else:
            parser.drop_empty(line, place)


def _rows(parser: TextRecords, offset: int, run: bytes) -> Iterator[tuple[int, bytes, list[str]]]:
    """Yield (offset, line, columns) of each line that is neither blank nor the header."""
    skip = parser.file.has_header and offset <= 3  # behind a byte order mark
    for line in run.split(b"\n"):
        if skip and line.strip():
            skip = False
        elif line.strip():
            try:
                decoded = line.decode()
            except UnicodeDecodeError:
                decoded = parser.invalid(line, offset)
            if decoded:
                yield offset, line, decoded.split("\t")
        offset += len(line) + 1


def header_layout(first_line: str) -> str | None:
    """Return the layout that a header line names: "labelled_tsv", "paired_tsv", or None if it is no header."""
    names = tuple(name.strip().lower() for name in first_line.split("\t"))
    if len(names) in (2, 3) and names[0] in LABEL_NAMES and names[1] in TEXT_NAMES:
        return "labelled_tsv" if len(names) == 2 or names[2] in SECOND_NAMES else None
    if len(names) == 2 and names[0] in SOURCE_NAMES and names[1] in TARGET_NAMES:
        return "paired_tsv"
    return None
