"""Wikitext to plain text: what a reader of the page would read, without tables, boxes, notes and links' targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from typing import Any

MAX_REPARSED_CHARACTERS = 8 << 20  # an opening without an end makes the parser read the rest of the page again

FILE_NAME = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|og[gvam]|webm|wav|mp3|mid|pdf|djvu)\s*$", re.IGNORECASE)
PREFIX = re.compile(r"\s*([^:\[\]|#]{1,40}):(?=\S)")
DROPPED_TAGS = frozenset(
    (
        "ref", "references", "gallery", "math", "chem", "ce", "table", "timeline",
        "score", "imagemap", "hiero", "mapframe", "maplink", "templatestyles", "graph", "syntaxhighlight",
        "source", "inputbox", "categorytree", "section", "noinclude", "includeonly", "onlyinclude", "indicator",
    )
)  # fmt: skip
PAIRS = (("{{", "}}"), ("[[", "]]"), ("{|", "|}"), ("<", ">"), ("[", "]"))
TAG = re.compile(r"<(/?)(?!br\b|hr\b|li\b|p\b)[a-zA-Z]+[^<>]*?(/?)>")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)

CODE = r"(?:zh|gan|sr|kk|ku|uz|tg|iu|shi|crh)(?:-[a-z]+)*"
RULE = rf"(?:[^;:|=]*+=>\s*+)?(?P<code>{CODE})\s*+:"  # possessive: white space of any length takes no time
CONVERSION = re.compile(r"-\{(?!\{(?!\{))((?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+)\}-")
CONVERSION_FLAGS = re.compile(rf"(?:(?P<letters>[-+ADHNRST;\s]*+)|\s*+{CODE}(?:\s*+;\s*+{CODE})*+\s*+)\|")
CONVERSION_RULE = re.compile(rf"\s*+{RULE}(?P<words>.*)", re.DOTALL)
NEXT_RULE = re.compile(rf";\s*+(?={RULE.replace('?P<code>', '?:')})")
SIMPLIFIED = ("zh-hans", "zh-cn", "zh-sg", "zh-my")
MAX_NESTED_CONVERSIONS = 8

MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
QUOTES = re.compile("'{2,5}")
LEFT_BRACES = re.compile(r"\{\{[^{}]{0,2000}\}\}|\{\{\{?|\}\}\}?|\[\[(?:[^\[\]{}|\n]{0,200}\|)?|\]\]|\{\||\|\}")
LEFT_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
TABLE_LINE = re.compile(r"^[ \t]*[|!].*$", re.MULTILINE)
LIST_MARK = re.compile(r"^[ \t]*[*#:;]+[ \t]*", re.MULTILINE)
EMPTY_BRACKETS = re.compile(r"[(（][\s,;:，；、/–-]*[)）]|\[\s*\]")
BRACKET_START = re.compile(r"([(（])[\s,;:，；、]+")
SPACES = re.compile(r"[ \t\u00a0]+")
SPACE_BEFORE = re.compile(r" +([,.;:)\]!?](?:\s|$))", re.MULTILINE)
NO_WORD = re.compile(r"^[\W_]*$")


def is_too_broken(text: str) -> bool:
    """Whether so much markup is opened and not closed that parsing the page would take minutes."""
    unclosed = max(text.count(opening) - text.count(closing) for opening, closing in PAIRS)
    tags = sum(-1 if match[1] else not match[2] for match in TAG.finditer(text)) if "<" in text else 0
    return max(unclosed, tags) * len(text) > MAX_REPARSED_CHARACTERS


def without_conversions(text: str) -> str:
    """Return wikitext with one variant in place of ``-{zh-hans:...; zh-hant:...}-``: simplified, or else the first."""
    for _ in range(MAX_NESTED_CONVERSIONS):
        if "-{" not in text:
            break
        text, number = CONVERSION.subn(_variant, text)
        if not number:
            break
    return text


def _variant(conversion: re.Match[str]) -> str:
    content = conversion[1]
    if flags := CONVERSION_FLAGS.match(content):
        content = content[flags.end() :]
        letters = set(flags["letters"] or "")
        if letters & set("-+DHNT") and "A" not in letters:  # it defines or names something, and shows nothing
            return ""
    rules = [CONVERSION_RULE.match(part) for part in NEXT_RULE.split(content)]
    variants = {rule["code"]: rule["words"].strip().rstrip(";").rstrip() for rule in reversed(rules) if rule}
    if rules[0] is None or not variants:
        return content
    return variants[next((code for code in SIMPLIFIED if code in variants), rules[0]["code"])]


def plain_text(text: str, namespaces: Container[str]) -> str | None:
    """Return the text of a page; None if its markup cannot be parsed.

    Args:
        text: wikitext.
        namespaces: names of the namespaces, lower case: links into them are no text.
    """
    import mwparserfromhell
    from mwparserfromhell.parser import ParserError

    text = without_conversions(COMMENT.sub("", text))
    if is_too_broken(text):
        return None
    try:
        code = mwparserfromhell.parse(text, skip_style_tags=True)
        parts: list[str] = []
        _Renderer(namespaces, parts).nodes(code.nodes)
    except (ParserError, RecursionError):
        return None
    return _tidy("".join(parts))


class _Renderer:
    """Appends the text of parsed nodes to ``parts``; headings are marked by a leading form feed."""

    def __init__(self, namespaces: Container[str], parts: list[str]) -> None:
        self.namespaces = namespaces
        self.parts = parts

    def nodes(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            handler = getattr(self, f"render_{type(node).__name__.lower()}", None)
            if handler is not None:  # comments and arguments are no text
                handler(node)

    def render_text(self, node: Any) -> None:
        self.parts.append(node.value)

    def render_heading(self, node: Any) -> None:
        self.parts.append(f"\n\f{node.level}")
        self.nodes(node.title.nodes)
        self.parts.append("\n")

    def render_htmlentity(self, node: Any) -> None:
        character = node.normalize()
        self.parts.append("" if "\ud800" <= character <= "\udfff" or character == "\0" else character)

    def render_externallink(self, node: Any) -> None:
        if node.title is not None:
            self.nodes(node.title.nodes)

    def render_wikilink(self, node: Any) -> None:
        """Give a link's text, else its page's name; nothing for files, categories and other languages."""
        title = str(node.title).strip()
        prefix = PREFIX.match(title)
        if FILE_NAME.search(title) or (prefix and prefix[1].strip().lower() in self.namespaces):
            return
        if node.text is not None:
            self.nodes(node.text.nodes)
        elif not (prefix and prefix[1].islower() and len(prefix[1]) <= 12):  # a page in another language
            self.parts.append(title.lstrip(":").partition("#")[0] or title.lstrip("#"))

    def render_tag(self, node: Any) -> None:
        """Give what is inside a tag that is text, with line ends where it makes a block."""
        name = str(node.tag).strip().lower()
        if name in DROPPED_TAGS:
            return
        if name in ("br", "hr", "p", "div", "blockquote", "li", "dd", "dt"):
            self.parts.append("\n" if not node.wiki_markup else " ")
        if node.contents is not None:
            self.nodes(node.contents.nodes)
        if name in ("p", "div", "blockquote"):
            self.parts.append("\n")

    def render_template(self, node: Any) -> None:
        name = str(node.name).strip().lower().replace("_", " ")
        values = [parameter.value for parameter in node.params if not parameter.showkey]
        rendered = TEMPLATES.get("lang" if name.startswith("lang-") else name)
        if rendered is not None:
            rendered(self, name, values)

    def last(self, name: str, values: list[Any]) -> None:
        if values:
            self.nodes(values[-1].nodes)

    def first(self, name: str, values: list[Any]) -> None:
        if values:
            self.nodes(values[0].nodes)

    def quotation(self, name: str, values: list[Any]) -> None:
        self.parts.append("\n")
        self.first(name, values)
        self.parts.append("\n")

    def measure(self, name: str, values: list[Any]) -> None:
        words = [str(value).strip() for value in values]
        is_range = len(words) > 3 and words[1] in ("-", "–", "to", "and", "by", "x")
        self.parts.append(" ".join(words[: 4 if is_range else 2]))

    def fraction(self, name: str, values: list[Any]) -> None:
        words = [str(value).strip() for value in values]
        self.parts.append("/".join(words) if len(words) < 3 else f"{words[0]} {words[1]}/{words[2]}")

    def circa(self, name: str, values: list[Any]) -> None:
        self.parts.append("c. ")
        self.first(name, values)

    def as_of(self, name: str, values: list[Any]) -> None:
        self.parts.append(" ".join(["As of", *(str(value).strip() for value in values)]))

    def dash(self, name: str, values: list[Any]) -> None:
        self.parts.append(" – ")

    def apostrophe(self, name: str, values: list[Any]) -> None:
        self.parts.append("'s" if name.endswith("s") else "'")


Template = Callable[[_Renderer, str, list[Any]], None]
TEMPLATES: dict[str, Template] = {
    **dict.fromkeys(("lang", "transl", "transliteration", "nobold", "abbr link"), _Renderer.last),
    **dict.fromkeys(
        (
            "nowrap", "nobr", "nobreak", "nihongo", "abbr", "small", "big", "smallcaps", "sc", "em", "strong", "vr",
            "val", "math", "mvar", "angle bracket", "sup", "sub", "pb", "illm", "ill", "interlanguage link", "tooltip",
            "zh-hans", "okina", "lj", "var", "overline", "underline", "keypress", "quote inline", "formatnum", "bd",
        ),
        _Renderer.first,
    ),
    **dict.fromkeys(("quote", "blockquote", "cquote", "quotation", "centered", "center", "bq"), _Renderer.quotation),
    **dict.fromkeys(("convert", "cvt"), _Renderer.measure),
    **dict.fromkeys(("frac", "sfrac", "fraction"), _Renderer.fraction),
    **dict.fromkeys(("c.", "circa", "ca."), _Renderer.circa),
    **dict.fromkeys(("as of",), _Renderer.as_of),
    **dict.fromkeys(("snd", "spnd", "ndash", "spaced ndash", "endash", "mdash", "emdash", "dash"), _Renderer.dash),
    **dict.fromkeys(("'", "'s", "`"), _Renderer.apostrophe),
}  # fmt: skip


def _tidy(text: str) -> str:
    """Remove what is left of markup, empty brackets and sections, and superfluous white space."""
    text = QUOTES.sub("", MAGIC_WORD.sub("", text))
    text = LEFT_TAG.sub("", LEFT_BRACES.sub("", text))
    text = TABLE_LINE.sub("", text)
    text = LIST_MARK.sub("", text)
    text = BRACKET_START.sub(r"\1", EMPTY_BRACKETS.sub("", text))
    text = SPACE_BEFORE.sub(r"\1", SPACES.sub(" ", text))
    lines: list[str] = []
    headings: list[tuple[int, str]] = []  # not yet followed by text
    for line in text.split("\n"):
        if line[:1] == "\f":
            level = int(line[1:2])
            headings = [heading for heading in headings if heading[0] < level]
            headings.append((level, line[2:].strip(" =")))
        elif not NO_WORD.match(line):
            lines += [heading for _, heading in headings if heading]
            headings = []
            lines.append(line.strip())
    return "\n".join(lines)
