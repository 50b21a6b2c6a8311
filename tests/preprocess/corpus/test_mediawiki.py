"""MediaWiki dumps: which pages become documents, and their text."""

from __future__ import annotations

import bz2
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from preprocess.cleaning.drops import Drops
from preprocess.corpus.blocks import BlockReader
from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.document import Document
from preprocess.corpus.inputs import open_corpus
from preprocess.corpus.wikitext import is_too_broken, plain_text

pytest.importorskip("mwparserfromhell", reason="needs mwparserfromhell")

NAMESPACES = frozenset(["file", "image", "category", "datei"])
SAMPLE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def page(title: str, text: str, ns: int = 0, more: str = "") -> str:
    """Return a page as dumps have it."""
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n{more}"
        f"    <revision>\n      <text>{text}</text>\n    </revision>\n  </page>\n"
    )


def documents(path: Path, drops: Drops | None = None, **settings: object) -> list[Document]:
    """Return the documents of a dump."""
    corpus, _ = open_corpus(CorpusSettings(arguments=[str(path)], **settings), Path("/nowhere"))  # type: ignore[arg-type]
    assert corpus.files[0].layout == "mediawiki"
    return list(BlockReader(corpus, 1 << 30, drops).documents(0))


def test_pages_that_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    head = '<mediawiki>\n<siteinfo><namespaces><namespace key="6" case="x">Datei</namespace></namespaces></siteinfo>\n'
    pages = [
        page("One", "Text of one.\n\nMore [[Datei:picture]] of it &amp;amp; such."),
        page("Talk:One", "talk", ns=1),
        page("Uno", "#REDIRECT [[One]]", more='    <redirect title="One" />\n'),
        page("Due", "#redirect [[Two]]"),
        page("Void", "{{box}}"),
        page("Two", "Text of two &lt;ref&gt;note&lt;/ref&gt;.").replace("\n", "\r\n"),
    ]
    path.write_text(head + "".join(pages) + "</mediawiki>\n", newline="")
    drops = Drops()
    found = documents(path, drops)
    assert [item.text for item in found] == ["One\nText of one.\nMore of it & such.", "Two\nText of two."]
    assert path.read_bytes()[found[1].offset :].startswith(b"  <page>\r\n    <title>Two")
    assert drops.counts == {
        "documents_outside_main_namespace": 1,
        "documents_redirects": 2,
        "documents_without_text": 1,
    }


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic''.", "Bold and italic."),
        ("A [[link]], [[page|shown]] and [[words]]s.", "A link, shown and wordss."),
        ("== Head ==\nText.\n=== Sub ===\n== Empty ==\n", "Head\nText."),
        ("[[File:a.jpg|thumb|A [[cat]].]]Text.[[Category:Cats|x]] [[de:Katze]]", "Text."),
        ("[[Datei:x|y]] Text [[Star Trek: First Contact]].", "Text Star Trek: First Contact."),
        ("Text<ref name='a'>note</ref><ref name='b' />.<!-- hidden -->", "Text."),
        ("{{Infobox|a=b\n|c={{d}}}}\nBorn {{circa|1900}} ({{IPA|x}}).", "Born c. 1900."),
        ("{| class='x'\n|-\n| cell || cell\n|}\nText.", "Text."),
        ("* one\n** two\n# three\n; term : is\n: said", "one\ntwo\nthree\nterm is\nsaid"),
        ("See [http://x.org the site] or http://y.org now.", "See the site or now."),
        ("It is {{convert|5|km|mi}} or {{convert|1|-|2|m}} long.", "It is 5 km or 1 - 2 m long."),
        ("{{lang|fr|mot}} &ndash; {{lang-de|Wort}}, {{nowrap|10 kg}}", "mot – Wort, 10 kg"),
        ("x<sup>2</sup><br />y&nbsp;z <math>a_b</math> __NOTOC__", "x2\ny z"),
        ("left }} over ]] and [[ and {{ and {| here", "left over and and and here"),
        ("{{quote|Said he.}} <nowiki>[[x]]</nowiki>", "Said he.\nx"),
        ("", ""),
    ],
)
def test_wikitext(wikitext: str, expected: str) -> None:
    assert plain_text(wikitext, NAMESPACES) == expected


@pytest.mark.parametrize("opening", ["{{", "{{a|", "[[a|", "<b>", "{|\n|", "<ref name=", "[http://a "])
def test_markup_that_would_take_minutes_is_dropped(tmp_path: Path, opening: str) -> None:
    path = tmp_path / "x.xml"
    broken = page("Broken", opening.replace("<", "&lt;").replace(">", "&gt;") * 50_000)
    path.write_text("<mediawiki>\n" + broken + page("One", "Text.") + "</mediawiki>")
    drops = Drops()
    assert [item.text for item in documents(path, drops)] == ["One\nText."]
    assert drops.counts == {"documents_with_broken_markup": 1}


def test_nested_markup_is_no_danger() -> None:
    assert plain_text("{{{" * 1000 + "x" + "}}}" * 1000, NAMESPACES) is None  # deeper than the parser goes
    assert plain_text("{{a|" * 300 + "x" + "}}" * 300 + " Text.", NAMESPACES) is not None
    assert not is_too_broken("{{a}} [[b]] <br> <ref>x</ref> <ref name=a /> " * 10_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<mediawiki>\n" + page("A", "text")[:60],
            r"x.xml, line 2 \(offset 12\): the page that begins here has no </p",
        ),
        ("<mediawiki>\n" + page("A", "a & b"), r"line 2 \(offset 12\): the page .* is not well-formed XML \(not well"),
        ("<mediawiki>\n" + page("A", "&bomb;"), r"line 2 .* is not well-formed XML \(undefined entity"),
    ],
)
def test_dumps_that_are_broken(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        documents(tmp_path / "x.xml")


def test_entities_are_not_defined(tmp_path: Path) -> None:
    """A document type with entities, the usual bomb of XML, is no dump."""
    path = tmp_path / "x.xml"
    path.write_text('<!DOCTYPE x [<!ENTITY a "aa">]>\n<mediawiki>\n' + page("A", "&a;"))
    with pytest.raises(ValueError, match="it does not begin with <mediawiki"):
        documents(path, layout=("mediawiki",))


def test_invalid_utf8_in_a_page(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes(b"<mediawiki>\n" + page("A", "te?t").encode().replace(b"?", b"\xff") + page("B", "b").encode())
    with pytest.raises(ValueError, match=r"x.xml is not UTF-8: byte 0xff at offset \d+ \(line 6\)"):
        documents(path)
    drops = Drops()
    assert [item.text for item in documents(path, drops, invalid_utf8="drop")] == ["B\nb"]
    assert drops.counts == {"documents_invalid_utf8": 1}


def test_a_real_dump() -> None:
    """The sample that gensim ships: 106 articles of the English Wikipedia, without residue of markup."""
    gensim = pytest.importorskip("gensim", reason="needs the sample dump of gensim")
    path = Path(gensim.__file__).parent / "test" / "test_data" / SAMPLE
    drops = Drops()
    found = documents(path, drops)
    pages = ElementTree.fromstring(bz2.decompress(path.read_bytes())).findall("{*}page")
    articles = [item for item in pages if item.findtext("{*}ns") == "0" and item.find("{*}redirect") is None]
    assert [item.text.split("\n")[0] for item in found] == [item.findtext("{*}title") for item in articles]
    assert drops.counts == {"documents_redirects": 99, "documents_outside_main_namespace": 1}
    text = "\n".join(item.text for item in found)
    assert 2_800_000 < len(text) < 3_200_000
    residue = r"\[\[|\]\]|\{\{|\}\}|\|\}|\{\||\|thumb|thumb\||==|''|</?(?:ref|br|div|span|sup)\b|__[A-Z]+__|\( *\)"
    assert re.findall(residue, text) == []
    assert "Anarchism is a political philosophy that advocates self-governed societies" in text


def test_missing_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.xml").write_text("<mediawiki>\n" + page("A", "text"))
    monkeypatch.setitem(__import__("sys").modules, "mwparserfromhell", None)
    with pytest.raises(ValueError, match=r"x.xml is a MediaWiki dump: reading it needs the package mwparserfromhell"):
        documents(tmp_path / "x.xml")
