"""Pages of a MediaWiki XML dump to documents."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING

from preprocess.corpus.document import Document
from preprocess.corpus.layouts import PAGE_LINE
from preprocess.corpus.wikitext import plain_text

if TYPE_CHECKING:
    from preprocess.corpus.records import TextRecords

PAGE_END = b"</page>"
NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^<>]*>([^<>]+)</namespace>')
ENGLISH_NAMESPACES = ("file", "image", "category", "media", "special", "template", "help", "wikipedia", "user", "talk")


def parse_pages(parser: TextRecords, offset: int, run: bytes) -> Iterator[Document]:
    """Yield a document for each page of the main namespace: its title, then its paragraphs, a line each."""
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
    """Return the names of the namespaces that a dump's beginning lists, and the English ones, in lower case."""
    listed = (match[2].strip().lower() for match in NAMESPACE.finditer(head))
    return frozenset([*ENGLISH_NAMESPACES, *listed])


def require_parser(path: str) -> None:
    """Refuse a dump where the parser of wikitext is missing."""
    try:
        import mwparserfromhell  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{path} is a MediaWiki dump: reading it needs the package mwparserfromhell; install it with "
            "`pip install mwparserfromhell`"
        ) from None
