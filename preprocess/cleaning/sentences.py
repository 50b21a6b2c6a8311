"""Documents to sentences, for English, Chinese and text that mixes them; no character is lost.

Prose is cut at line ends (paragraphs), then:

- at the Chinese and Japanese marks 。！？ (and at ! ? . in front of Chinese text), inside quotations too; closing
  quotes and brackets stay with what they close, and `“走吧！”他说。` stays whole. ； and … end nothing; ……” does.
- by ``sentencex`` with its English rules (abbreviations, initials, numbers, quotes) wherever there is other text. Its
  English rules serve other languages with Latin letters too, less well. A quotation that it keeps whole is cut as well
  where that makes a sentence of more than LONG_QUOTATION characters.
- Text wrapped at a fixed width is cut at blank lines in place of line ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import accumulate, pairwise

import sentencex

from preprocess.corpus.document import Document

LONG_QUOTATION = 200  # characters
LONG_PARAGRAPH = 1 << 18  # characters; what follows takes 20 times its text in memory
WINDOW = 4096  # characters given to sentencex at once: its time is quadratic in the quotations of a text
MARK = "\0"  # where a sentence begins, while they are found

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
CLOSING = "”’」』）】》〉］)\\]"
HAN_CHARACTER = re.compile(f"[{HAN}\u3001\u3002\uff01\uff1f]")
# Behind a mark put after 。！？: what closes there belongs to the sentence before, and ， or another end goes on.
HAN_CLOSING = re.compile(f"\0(?:([{CLOSING}]+)|(?=[，、；：,;:。！？!?…]))")
GOES_ON_HAN = re.compile("[，、；：,;:。！？!?…]")
# ! ? . are ends in Chinese text too, … only where a quotation ends
ASCII_HAN_END = re.compile(f"(?<![!?])[!?]++(?=[{CLOSING}]*\\s*[{HAN}“「『（《])|(?<=[{HAN}])\\.++(?=[{CLOSING}]*\\s)")
SPEECH = re.compile("[^，。！？：；、\\s“”「」]{0,7}[说道问答喊叫嚷笑想][着了]?[，。：！]")  # as in “…！”他笑道：
LATIN_END = re.compile("[.!?][^\\w\\s]{0,9}\\s")
WRAPPED = re.compile("\n[a-zß-öø-ÿ]")
WHITE_SPACE = re.compile("[\\s\0]++")
CLOSING_BEHIND_MARK = re.compile("\0([_*”’»)\\]]+)(?=[\\s\0]|$)")
BAD_ENDS = frozenset(["", *filter(str.isspace, map(chr, range(0x3001)))])  # of a sentence: no text, or white space
END_WITHIN = re.compile("[.!?…][\"”’')]* +[\"“‘'(]?[A-ZÀ-ÖØ-Þ]")
SINGLE_QUOTES = re.compile("‘|(?<!\\w)'|['’](?!\\w)")  # not apostrophes
BEHIND_END = re.compile("[\"”’'»)\\]_*]*")
WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
WORD = re.compile("\\w")
GOES_ON = re.compile("[\\s\"“„«‘'(\\[_*]*[a-zß-öø-ÿ,;:—–-]")


class LineSplitter:
    """Each line is a sentence."""

    def split(self, text: str) -> list[str]:
        """Return the lines of ``text`` that are not blank; white space between two is at the beginning of the later."""
        if MARK in text:  # a control character that nobody removed
            return _by_paragraph(text, "\n", lambda line: [line])
        return _cut_at_marks(text, text.replace("\n", MARK + "\n"))


class SentenceSplitter:
    """Paragraphs at line ends, sentences by rules (see the top of this file)."""

    def split(self, text: str) -> list[str]:
        """Return the sentences of ``text``; joined they are ``text``.

        Args:
            text: without white space at its ends, not empty.

        Returns:
            Strings that are not blank; white space between two sentences is at the beginning of the later one.
        """
        if "\n" not in text:
            return _sentences(text)
        return _by_paragraph(text, "\n\n" if _is_wrapped(text) else "\n", _sentences)


Splitter = LineSplitter | SentenceSplitter


def build_splitter(split_sentences: bool) -> Splitter:
    """Return what cuts prose: into sentences, or only into lines."""
    return SentenceSplitter() if split_sentences else LineSplitter()


def split_sentences(document: Document, splitter: Splitter) -> list[str]:
    """Return the sentences of a document's text: its lines if these are sentences, else what ``splitter`` finds.

    ``"".join`` of them is ``document.text``; none is blank.
    """
    if not document.text:
        return []
    return (LINES if document.lines_are_sentences else splitter).split(document.text)


LINES = LineSplitter()


def _by_paragraph(text: str, separator: str, cut: Callable[[str], list[str]]) -> list[str]:
    """Cut each paragraph without the white space behind it, which goes to the next one."""
    result: list[str] = []
    before = ""  # white space in front of the next paragraph
    for paragraph in text.split(separator):
        stripped = paragraph.rstrip()
        if stripped:
            sentences = cut(stripped)
            result.append(before + sentences[0])
            result += sentences[1:]
            before = ""
        before += paragraph[len(stripped) :] + separator
    return result


def _is_wrapped(text: str) -> bool:
    """Whether most line ends are inside sentences: followed by a small letter."""
    return 2 * len(WRAPPED.findall(text)) > max(text.count("\n") - 2 * text.count("\n\n"), 4)


def _sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph without white space at its end."""
    if len(paragraph) > LONG_PARAGRAPH:
        return _sentences_of_parts(paragraph)
    if len(paragraph) <= WINDOW and (paragraph.isascii() or not HAN_CHARACTER.search(paragraph)):
        # What follows does the same as below when each sentence but the last ends with one space, and twice as fast.
        stripped = list(map(str.rstrip, _segment(paragraph)))
        if " ".join(stripped) == paragraph and "" not in stripped:
            sentences = [stripped[0], *[" " + sentence for sentence in stripped[1:]]]
            return _cut_quotations(paragraph, sentences)
    if MARK in paragraph:  # a control character that nobody removed
        return [paragraph]
    marked = _marked_alike(paragraph, _mark(paragraph.replace("\n", " "))) if "\n" in paragraph else _mark(paragraph)
    return _cut_quotations(paragraph, _cut_at_marks(paragraph, marked))


def _sentences_of_parts(paragraph: str) -> list[str]:
    """Return the sentences of a long paragraph in bounded memory: the last two of a part begin the next part."""
    result: list[str] = []
    unfinished: list[str] = []  # parts of a sentence that is longer than a part
    begin = 0
    while begin < len(paragraph):
        end = begin + LONG_PARAGRAPH
        while end < len(paragraph) and paragraph[begin:end].isspace():
            end += LONG_PARAGRAPH
        part = paragraph[begin:end].rstrip()
        text = part.lstrip()
        sentences = _sentences(text)
        sentences[0] = part[: len(part) - len(text)] + sentences[0]
        is_last = end >= len(paragraph)
        if not is_last:
            del sentences[max(1, len(sentences) - 2) :]
        begin += sum(map(len, sentences))
        unfinished.append(sentences[0])
        if is_last or len(sentences) > 1:
            result.append("".join(unfinished))
            unfinished = []
            result += sentences[1:]
    return result


def _segment(text: str) -> list[str]:
    """Return the sentences that sentencex finds; joined they are ``text``.

    It stops with a panic at some white space that takes more than one byte, so it is given spaces instead.
    """
    plain = text if text.isascii() else WIDE_SPACE.sub(" ", text)
    try:
        sentences: list[str] = sentencex.segment("en", plain)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return [text]
    if sum(map(len, sentences)) != len(text):
        return [text]
    if plain is text or plain == text:
        return sentences
    bounds = accumulate(map(len, sentences), initial=0)
    return [text[begin:end] for begin, end in pairwise(bounds)]


def _mark(line: str) -> str:
    """Return a line with a MARK between sentences; white space may be on either side of it."""
    if line.isascii() or not HAN_CHARACTER.search(line):
        return _mark_latin(line)
    marked = _mark_han(line) if '"' not in line else _mark_straight_quotes(line)
    if LATIN_END.search(line):
        marked = MARK.join(_mark_latin(part) if LATIN_END.search(part) else part for part in marked.split(MARK))
    return marked


def _mark_han(line: str) -> str:
    """Mark the ends of Chinese sentences; plain replacements, since this is a third of the cost of all."""
    marked = line.replace("。", "。\0").replace("！", "！\0").replace("？", "？\0").replace("…”", "…\0”")
    if "!" in line or "?" in line or "." in line:
        marked = ASCII_HAN_END.sub("\\g<0>" + MARK, marked)
    return HAN_CLOSING.sub(_behind_closing, marked).rstrip(MARK)


def _behind_closing(found: re.Match[str]) -> str:
    """Return the closing marks with the MARK behind them, or without where the sentence goes on."""
    closing = found[1] or ""
    goes_on = GOES_ON_HAN.match(found.string, found.end()) or (
        closing.endswith(("”", "’", "」", "』")) and SPEECH.match(found.string, found.end())
    )
    return closing if goes_on else closing + MARK


def _mark_straight_quotes(line: str) -> str:
    """Mark Chinese sentences where quotes are the same on both sides: every second one closes."""
    parts = line.split('"')
    marked = _mark_han("".join(part + "“”"[number % 2] for number, part in enumerate(parts))[:-1])
    return _marked_alike(line, marked)


def _marked_alike(line: str, marked: str) -> str:
    """Return ``line`` with marks where ``marked``, a text of the same length without them, has them."""
    bounds = accumulate(map(len, marked.split(MARK)), initial=0)
    return MARK.join(line[begin:end] for begin, end in pairwise(bounds))


def _mark_latin(line: str) -> str:
    """Mark sentences by sentencex; what it would not give back whole stays one sentence."""
    if len(line) > WINDOW:
        return _mark_windows(line)
    return MARK.join(_segment(line))


def _mark_windows(line: str) -> str:
    """Mark a long line in time linear in its length: the last sentence of a window begins the next window."""
    marked = []
    begin = 0
    while begin < len(line):
        found = _mark_latin(line[begin : begin + WINDOW]).split(MARK)
        is_last = begin + WINDOW >= len(line)
        whole = found if is_last or len(found) == 1 else [*found[:-1], ""]
        marked.append(MARK.join(whole))
        begin += sum(map(len, whole))
    return "".join(marked)


def _cut_at_marks(text: str, marked: str) -> list[str]:
    """Cut at the marks, each moved in front of the white space around it; marks side by side are one."""
    if len(text) == len(marked):
        return [text]
    marked = CLOSING_BEHIND_MARK.sub("\\1" + MARK, marked)
    sentences = marked.replace(" \0", "\0 ").replace(" \0", "\0 ").split(MARK)  # one or two spaces, as nearly always
    if BAD_ENDS.isdisjoint({sentence[-1:] for sentence in sentences}):
        return sentences
    marked = WHITE_SPACE.sub(_mark_in_front, marked)
    return marked.strip(MARK).split(MARK)


def _mark_in_front(found: re.Match[str]) -> str:
    white_space = found[0].replace(MARK, "")
    return found[0] if len(white_space) == len(found[0]) else MARK + white_space


def _cut_quotations(paragraph: str, sentences: list[str]) -> list[str]:
    """Return the sentences with those of more than LONG_QUOTATION characters cut inside their quotations."""
    if len(paragraph) <= LONG_QUOTATION or not _is_quoted(paragraph) or max(map(len, sentences)) <= LONG_QUOTATION:
        return sentences
    result: list[str] = []
    for sentence in sentences:
        if len(sentence) > LONG_QUOTATION and _is_quoted(sentence):
            result += _cut_quotation(sentence)
        else:
            result.append(sentence)
    return result


def _is_quoted(text: str) -> bool:
    return '"' in text or "“" in text or "”" in text or _is_single_quoted(text)


def _is_single_quoted(text: str) -> bool:
    return " '" in text or "‘" in text or text[:1] == "'"


def _cut_quotation(sentence: str) -> list[str]:
    """Cut a long sentence with a quotation as if it had no quotes, but not in front of a small letter."""
    if not END_WITHIN.search(sentence):
        return [sentence]
    unquoted = sentence.replace('"', " ").replace("“", " ").replace("”", " ")
    if _is_single_quoted(sentence):
        unquoted = SINGLE_QUOTES.sub(" ", unquoted)
    parts = _mark_latin(unquoted).split(MARK)
    if len(parts) == 1:
        return [sentence]
    cuts = [0]
    end = 0
    for part in parts[:-1]:
        found = BEHIND_END.match(sentence, end + len(part.rstrip()))
        end += len(part)
        cut = found.end() if found else end
        is_between_words = WORD.search(sentence, cuts[-1], cut) and WORD.search(sentence, cut, cut + LONG_QUOTATION)
        if is_between_words and not GOES_ON.match(sentence, cut):
            cuts.append(cut)
    return [sentence[begin:end] for begin, end in pairwise([*cuts, len(sentence)])]
