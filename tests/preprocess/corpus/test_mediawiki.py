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
from preprocess.corpus.mediawiki import check_dump
from preprocess.corpus.wikitext import is_too_broken, plain_text, without_conversions

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


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("数学-{zh-hans:研究; zh-hant:研究所}-是", "数学研究是"),
        ("用-{zh-tw:電腦;zh-cn:计算机;}-吧", "用计算机吧"),
        ("-{zh-tw:資訊;zh-hk:資料}-", "資訊"),  # neither is simplified: the first
        ("一个-{zh-hans:; zh-hant:個}-人", "一个人"),
        ("-{范}-仲淹", "范仲淹"),
        ("-{zh-hant|乾}-隆和-{zh-hans;zh-hant|里}-", "乾隆和里"),
        ("-{A|zh-hans:鼠标; zh-hant:滑鼠}-好", "鼠标好"),
        ("-{H|zh-cn:宏;zh-tw:巨集}-文-{T|标题}-字-{D|zh-cn:甲;zh-tw:乙}-", "文字"),
        ("见-{巨集=>zh-cn:宏; 巨集=>zh-tw:巨集}-。", "见宏。"),
        ("-{zh-hans:{{lang|en|word}}; zh-hant:[[甲|乙]]}-", "word"),
        ("甲-{乙-{丙}-丁}-戊", "甲乙丙丁戊"),
        ("[[甲|-{zh-hans:乙;zh-hant:丙}-]]", "乙"),
        ("A-{{nowrap|b}}-c", "A-b-c"),  # a template between hyphens
        ("x<math>-{y}</math> a {{nowrap|5}}-day <math>{z}-</math> trip", "x a 5-day trip"),
    ],
)
def test_language_conversion(wikitext: str, expected: str) -> None:
    assert plain_text(wikitext, NAMESPACES) == expected


@pytest.mark.parametrize(
    "wikitext",
    [
        "-{" * 100_000,
        "-{ a " * 100_000,
        "-{" + " " * 300_000 + "}-",
        "-{zh:" + ";zh" * 100_000 + "}-",
        "-{" + "zh;" * 100_000 + "}-",
    ],
)
def test_language_conversion_is_linear(wikitext: str) -> None:
    """A square of the length would take minutes."""
    assert len(without_conversions(wikitext)) <= len(wikitext)


@pytest.mark.parametrize(
    "name", ["分类", "分類", "文件", "档案", "檔案", "图像", "Kategorie", "Файл", "Catégorie", "画像"]
)
def test_namespaces_that_the_dump_does_not_list(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.xml"
    head = '<siteinfo><namespaces><namespace key="14">Category</namespace></namespaces></siteinfo>\n'
    text = f"正文[[{name}:数学]]。[[{name}：不是]] [[{name}:数学|排序]]"
    path.write_text("<mediawiki>\n" + head + page("题", text) + "</mediawiki>", encoding="utf-8")
    assert [item.text for item in documents(path)] == [f"题\n正文。{name}：不是"]


ONE_LINE = "<mediawiki>" + "".join(page(title, "text") for title in "AB").replace("\n", "") + "</mediawiki>"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (ONE_LINE, 1),
        ("<mediawiki>\n" + page("A", "text") + page("B", "text").replace("<page>\n", "<page>"), 9),
        ("<mediawiki>\n" + page("A", "text").rstrip() + page("B", "text"), 8),
        ("<mediawiki>\n" + page("A", "text").replace("<page>", '<page id="1">'), 2),
    ],
)
def test_page_inside_a_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "x.xml"
    path.write_text(text)
    message = rf"x.xml, line {line}: a dump must have <page> on a line of its own.*xmllint --format .*x.xml > NEW_FILE"
    with pytest.raises(ValueError, match=message):
        documents(path, layout=("mediawiki",))
    with pytest.raises(ValueError, match=message):
        check_dump(str(path), text.encode())


def test_page_inside_a_line_far_behind(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text("<mediawiki>\n" + page("A", "text " * 2000) * 600 + page("B", "text").replace("\n", "") + "\n")
    with pytest.raises(ValueError, match=r"x.xml, line 4,202: a dump must have <page> on a line of its own"):
        documents(path)


def test_samples_of_good_dumps() -> None:
    """However much of a dump is looked at."""
    start = b'\xef\xbb\xbf<?xml version="1.0"?>\r\n<!-- a <page> b -->\n'.replace(b"<page>", b"page")
    dump = start + ("<mediawiki>\n" + page("A", "a &lt;page&gt; b")).replace("\n", "\r\n").encode()
    for size in range(len(dump) + 1):
        check_dump("x.xml", dump[:size])


@pytest.mark.parametrize("start", ["", '<?xml version="1.0"?>\n', "\ufeff<!-- one -->\n<!-- two -->"])
def test_document_type(tmp_path: Path, start: str) -> None:
    path = tmp_path / "x.xml"
    path.write_text(start + '<!DOCTYPE mediawiki SYSTEM "x.dtd">\n<mediawiki>\n' + page("A", "text"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"x.xml.*it does not begin with <mediawiki"):
        documents(path, layout=("mediawiki",))
    with pytest.raises(ValueError, match=r"x.xml is no dump.*but with <!DOCTYPE"):
        check_dump(str(path), path.read_bytes())


def test_page_inside_a_line_is_seen_at_once(tmp_path: Path) -> None:
    """Before any work, with the layout that was detected."""
    path = tmp_path / "x.xml"
    path.write_text(ONE_LINE)
    with pytest.raises(ValueError, match=r"x.xml, line 1: a dump must have <page> on a line of its own"):
        open_corpus(CorpusSettings(arguments=[str(path)]), tmp_path)
