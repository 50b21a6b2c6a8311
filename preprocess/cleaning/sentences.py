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
from itertools import accumulate, pairwise

import sentencex

from preprocess.corpus.document import Document

LONG_QUOTATION = 200  # characters
WINDOW = 4096  # characters given to sentencex at once: its time is quadratic in the quotations of a text
MARK = "\0"  # where a sentence begins, while they are found

HAN = "\u2e80-\u2fdf\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
CLOSING = "”’」』）】》〉］)\\]"
SPEECH = "[^，。！？：；、\\s“”「」]{0,7}[说道问答喊叫嚷笑想][着了]?[，。：！]"  # as in “…！”他笑道：
HAN_CHARACTER = re.compile(f"[{HAN}\u3001\u3002\uff01\uff1f]")
HAN_END = re.compile(
    f"(?:(?:[。｡！？][。｡！？!?…]*|…+(?=[”」』])|[!?]+(?=[{CLOSING}]*\\s*[{HAN}“「『（《])|(?<=[{HAN}])\\.+(?=[{CLOSING}]*\\s))"
    f"(?:[{CLOSING}]*[”’」』][{CLOSING}]*(?!{SPEECH})|[）】》〉］)\\]]*(?![{CLOSING}])))"
)
LATIN_END = re.compile("[.!?][^\\w\\s]*\\s")
WRAPPED = re.compile("\n[a-zß-öø-ÿ]")
MARK_IN_WHITE_SPACE = re.compile("\\s[\\s\0]*\0[\\s\0]*|\0[\\s\0]*")
CLOSING_BEHIND_MARK = re.compile("\0([_*”’»)\\]]+)(?=[\\s\0]|$)")
QUOTES = re.compile("[\"“”„«»‘]|(?<!\\w)'|['’](?!\\w)")
BEHIND_END = re.compile("[\"”’'»)\\]_*]*")
WORD = re.compile("\\w")
GOES_ON = re.compile("[\\s\"“„«‘'(\\[_*]*[a-zß-öø-ÿ,;:—–-]")


class LineSplitter:
    """Each line is a sentence."""

    def split(self, text: str) -> list[str]:
        """Return the lines of ``text``, each behind its line end."""
        return _cut_at_marks(text, text.replace("\n", MARK + "\n")) if MARK not in text else [text]


class SentenceSplitter:
    """Paragraphs at line ends, sentences by rules (see the top of this file)."""

    def split(self, text: str) -> list[str]:
        """Return the sentences of ``text``; joined they are ``text``.

        Args:
            text: without white space at its ends.

        Returns:
            Strings that are not blank; white space between two sentences is at the beginning of the later one.
        """
        if MARK in text:  # control characters that nobody removed
            pieces = [self.split(piece) if piece.strip() else [piece] for piece in text.split(MARK)]
            return _joined_at_nul(pieces)
        if "\n" in text and _is_wrapped(text):
            marked = (MARK + "\n\n").join(map(_mark_wrapped, text.split("\n\n")))
        elif "\n" in text:
            marked = (MARK + "\n").join(map(_mark, text.split("\n")))
        else:
            marked = _mark(text)
        sentences = _cut_at_marks(text, marked)
        if max(map(len, sentences)) > LONG_QUOTATION:
            return [part for sentence in sentences for part in _cut_quotation(sentence)]
        return sentences


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


def _is_wrapped(text: str) -> bool:
    """Whether most line ends are inside sentences: followed by a small letter."""
    return 2 * len(WRAPPED.findall(text)) > max(text.count("\n") - 2 * text.count("\n\n"), 4)


def _mark_wrapped(paragraph: str) -> str:
    """Mark the sentences of a paragraph whose line ends mean nothing."""
    sentences = _mark(paragraph.replace("\n", " ")).split(MARK)
    bounds = accumulate(map(len, sentences), initial=0)
    return MARK.join(paragraph[begin:end] for begin, end in pairwise(bounds))


def _mark(line: str) -> str:
    """Return a line with a MARK between sentences; white space may be on either side of it."""
    if line.isascii() or not HAN_CHARACTER.search(line):
        return _mark_latin(line)
    marked = HAN_END.sub("\\g<0>" + MARK, line) if '"' not in line else _mark_straight_quotes(line)
    if LATIN_END.search(line):
        marked = MARK.join(_mark_latin(part) if LATIN_END.search(part) else part for part in marked.split(MARK))
    return marked


def _mark_straight_quotes(line: str) -> str:
    """Mark Chinese sentences where quotes are the same on both sides: every second one closes."""
    curly = list(line)
    for number, found in enumerate(re.finditer('"', line)):
        curly[found.start()] = "“”"[number % 2]
    ends = [found.end() for found in HAN_END.finditer("".join(curly))]
    return MARK.join(line[begin:end] for begin, end in pairwise([0, *ends, len(line)]))


def _mark_latin(line: str) -> str:
    """Mark sentences by sentencex; what it would not give back whole stays one sentence."""
    if len(line) > WINDOW:
        return MARK.join(_windows(line))
    marked = MARK.join(sentencex.segment("en", line))
    return marked if marked.replace(MARK, "") == line else line


def _windows(line: str) -> list[str]:
    """Cut a long line in time linear in its length: the last sentence of a window begins the next window."""
    sentences = [""]
    begin = 0
    while begin < len(line):
        window = line[begin : begin + WINDOW]
        found = _mark_latin(window).split(MARK)
        at_end = begin + WINDOW >= len(line)
        whole = found if at_end or len(found) == 1 else found[:-1]
        sentences[-1] += whole[0]
        sentences += whole[1:]
        if len(found) > 1:
            sentences.append("")
        begin += sum(map(len, whole))
    return sentences


def _cut_at_marks(text: str, marked: str) -> list[str]:
    """Cut at the marks, each moved in front of the white space around it; marks side by side are one."""
    if text.isprintable() or text.replace("\n", " ").isprintable():  # then it has no other white space
        while " \0" in marked or "\n\0" in marked:
            marked = marked.replace(" \0", "\0 ").replace("\n\0", "\0\n")
        while "\0\0" in marked:
            marked = marked.replace("\0\0", "\0")
    else:
        marked = MARK_IN_WHITE_SPACE.sub(lambda found: MARK + found[0].replace(MARK, ""), marked)
    if "\0_" in marked or "\0*" in marked or not text.isascii() or "\0)" in marked or "\0]" in marked:
        marked = CLOSING_BEHIND_MARK.sub("\\1" + MARK, marked).replace("\0\0", "\0")
    return marked.strip(MARK).split(MARK)


def _cut_quotation(sentence: str) -> list[str]:
    """Cut a long sentence with a quotation as if it had no quotes, but not in front of a small letter."""
    if len(sentence) <= LONG_QUOTATION or not QUOTES.search(sentence):
        return [sentence]
    parts = _mark_latin(QUOTES.sub(" ", sentence)).split(MARK)
    cuts = [0]
    end = 0
    for part in parts[:-1]:
        found = BEHIND_END.match(sentence, end + len(part.rstrip()))
        end += len(part)
        cut = found.end() if found else end
        is_between_words = WORD.search(sentence, cuts[-1], cut) and WORD.search(sentence, cut)
        if is_between_words and not GOES_ON.match(sentence, cut):
            cuts.append(cut)
    return [sentence[begin:end] for begin, end in pairwise([*cuts, len(sentence)])]


def _joined_at_nul(pieces: list[list[str]]) -> list[str]:
    """Put the sentences of texts with a NUL between them together; the NULs stay where they were."""
    sentences = pieces[0]
    for piece in pieces[1:]:
        sentences[-1] += MARK + piece[0]
        sentences += piece[1:]
    return sentences
