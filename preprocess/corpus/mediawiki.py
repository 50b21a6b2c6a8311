"""Pages of a MediaWiki XML dump to documents."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from preprocess.corpus.document import Document
from preprocess.corpus.layouts import PAGE_LINE
from preprocess.corpus.wikitext import plain_text

if TYPE_CHECKING:
    from preprocess.corpus.records import TextRecords

PAGE_END = b"</page>"
NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^<>]*>([^<>]+)</namespace>')
ENGLISH_NAMESPACES = ("file", "image", "category", "media", "special", "template", "help", "wikipedia", "user", "talk")
ALIASES = (  # of Category and File; a dump lists at most one name of each
    "分类", "分類", "文件", "档案", "檔案", "图像", "圖像", "图片", "圖片",  # zh
    "カテゴリ", "ファイル", "画像",  # ja
    "kategorie", "datei", "bild", "catégorie", "fichier", "categoría", "archivo", "imagen",  # de fr es
    "категория", "файл", "изображение",  # ru
)  # fmt: skip
DOCUMENT_TYPE = re.compile(rb"[^<]*(?:<(?:\?[^>]*>|!--.*?-->)[^<]*)*+<!DOCTYPE", re.DOTALL)
PAGE_TAG = re.compile(rb"<page(?:\s[^<>]*)?>")


def parse_pages(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each page of the main namespace: its title, then its paragraphs, a line each."""
    check_pages(parser.file.path, run, lambda place: parser.line_number(offset + place))
    for start, record in _pages(run):
        yield from _page(parser, offset + start, record)


def _pages(run: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (place, bytes) of each page, from the line ``<page>`` on; what is no page is left out."""
    starts = [0] if PAGE_LINE.match(b"\n" + run) else []
    starts += [match.end() for match in PAGE_LINE.finditer(run)]
    for start, end in itertools.pairwise([*starts, len(run)]):
        yield start, run[start:end]


def _page(parser: TextRecords, offset: int, record: bytes) -> Iterator[Document]:
    end = record.find(PAGE_END)
    if end < 0:
        raise parser.error(offset, "the page that begins here has no </page>: the dump is cut off; fetch it again")
    record = record[: end + len(PAGE_END)]
    try:
        decoded = record.decode()
    except UnicodeDecodeError:
        decoded = parser.invalid(record, offset)
        if not decoded:
            return
    try:
        page = ElementTree.fromstring(decoded)
    except ElementTree.ParseError as error:
        raise parser.error(offset, f"the page that begins here is not well-formed XML ({error})") from None
    reason, text = _text(page, parser.namespaces)
    if reason:
        parser.drops.add_record(reason, record, parser.file.path, offset)
    else:
        yield Document(text, parser.file.source, False, None, None, parser.file.path, offset)


def _text(page: ElementTree.Element, namespaces: Container[str]) -> tuple[str, str]:
    """Return (reason to drop a page or "", its text)."""
    if (page.findtext("ns") or "0").strip() != "0":
        return "documents_outside_main_namespace", ""
    texts = page.findall("revision/text")
    wikitext = (texts[-1].text or "") if texts else ""
    if page.find("redirect") is not None or wikitext[:20].lstrip().lower().startswith("#redirect"):
        return "documents_redirects", ""
    body = plain_text(wikitext, namespaces)
    if body is None:
        return "documents_with_broken_markup", ""
    if not body:
        return "documents_without_text", ""
    title = (page.findtext("title") or "").strip()
    return "", f"{title}\n{body}".strip()


def namespace_names(head: str) -> frozenset[str]:
    """Return the names of the namespaces that a dump's beginning lists, and some always known ones, in lower case."""
    listed = (match[2].strip().lower() for match in NAMESPACE.finditer(head))
    return frozenset([*ENGLISH_NAMESPACES, *ALIASES, *listed])


def check_dump(path: str, sample: bytes) -> None:
    """Refuse a dump that cannot be cut into pages or has a document type.

    Args:
        path: the file, for messages.
        sample: its first bytes, uncompressed.

    Raises:
        ValueError: naming the file, and the line of a ``<page>`` that is not on a line of its own.
    """
    if DOCUMENT_TYPE.match(sample):
        raise ValueError(
            f"{path} is no dump of MediaWiki: it does not begin with <mediawiki but with <!DOCTYPE, which may define "
            "entities, and no dump has; take it out, or fetch the dump again"
        )
    check_pages(path, sample, lambda place: 1 + sample.count(b"\n", 0, place))


def check_pages(path: str, data: bytes, line_at: Callable[[int], int]) -> None:
    """Refuse a part of a dump with a ``<page>`` inside a line; ``line_at`` tells the line of a place in the part."""
    for match in PAGE_TAG.finditer(data):
        start, end = data.rfind(b"\n", 0, match.start()) + 1, data.find(b"\n", match.end())
        line = data[start : end if end >= 0 else len(data)]
        if line.strip(b" \t\r") != b"<page>":
            raise ValueError(
                f"{path}, line {line_at(match.start()):,}: a dump must have <page> on a line of its own, as "
                "Wikimedia's exporter writes it, and here more is in the line; write the dump anew (unpack it first, "
                f"if it is compressed): xmllint --format {path} > NEW_FILE"
            )


def require_parser(path: str) -> None:
    """Refuse a dump where the parser of wikitext is missing."""
    try:
        import mwparserfromhell  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path} is a MediaWiki dump: reading it needs the package mwparserfromhell; install it with "
            "`pip install mwparserfromhell`"
        ) from None
