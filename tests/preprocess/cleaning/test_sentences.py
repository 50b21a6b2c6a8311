"""Sentences: hand-made cases, real text, and no character lost whatever comes."""

from __future__ import annotations

import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.cleaning import sentences
from preprocess.cleaning.sentences import build_splitter, split_sentences
from preprocess.corpus.document import Document

# "|" stands where a sentence begins; the text is what is left without it.
ENGLISH = [
    "One sentence.",
    "No end at all",
    "He came.| She went.",
    "Really?!| Yes!| Oh.",
    "Mr. Smith met Mrs. Jones and Dr. Watson.| They talked.",
    "He met Prof. Plum, Lt. Col. Mustard and St. John.| Fine.",
    "J. R. R. Tolkien wrote it.| C. S. Lewis did not.",
    "It cost $5.50 in the U.S. Army.| It was cheap.",
    "Apples, pears, etc. were there, i.e. fruit, e.g. plums.| All ripe.",
    "Version 1.2.3 is at www.example.com now.| Write to a.b@example.org soon.",
    "See Fig. 3 for it.| It is clear.",
    "Wait... what?| I see.",
    '"Hello!" he said.| "Go away."| He went.',
    "“Hello!” he said.| “Go away.”| He went.",
    'He asked "Why?" and left.| Nobody knew.',
    '"On the whole," said Holmes, "I think so."| He rose.',
    '"I think so. I have proof."| He rose.',  # a short quotation stays whole
    "(It was late.) We left.",  # sentencex keeps these together
    "_Yes._| Then.| *Go!*| Well.",
    "Hello world !| How are you ?| Fine .",
    "Two  spaces.|  Between sentences.",
    "A tab.|\tThen more.|\u00a0Not a break.",
    "One paragraph.|\nAnother.|\n\nA third. \n",
    "A heading|\nwithout end|\n\nText.| And more",
    "1929 or 1989?| Both.",
    "He was born in 1879.| In 1905 he wrote it.",
    "Das ist gut.| Und das?| Ja!",
    "¿Qué pasa?| ¡Nada!| Bien.",
    "Он пришёл.| Она ушла.",
]  # fmt: skip
CHINESE = [
    "一句话。",
    "没有结尾",
    "他来了。|她走了！|真的吗？|是的。",
    "他说：“走吧。”|她没有动。",
    "“走吧！”他笑道：“好。”|她走了。",
    "“走吧！”王先生说，“现在就走。”|大家都走了。",
    "他说：“我来了。|你呢？”|她不说话。",
    "她问：‘谁？’|没有人。",
    "“好！”，他说。|“走。”：这是他说的。|为什么？，不知道。",
    "「是嗎？」|他走了。|『好。』|完",
    "（他走了。）|她也走了。",
    "我……不知道。|真的。",
    "他想：“没有……”|后来忘了。",
    "什么？！|真的！！！|好。。。|完了",
    "一、苹果；二、梨；三、桃。|都好。",
    "重庆。|3月1日，汉阳。|555，好。",
    "价格是3.5元。|涨了2.1%。",
    "约翰.史密斯来了。|他说OK。",
    "真的吗?|好的!|走吧.| 再见",
    "J.K.罗琳写的。|很好看。",
    "Hello world.| This is Mr. Smith.| 你好。|Good morning.",
    '他说："走吧！|你呢？"|她走了。',
    '"好。"他说，"走。"|完。',
    "第一段。|\n　　第二段。|第三句。",
    "他走了。|　　她来了。",
    "これはペンです。|あれは本ですか？|はい。",
    "你好！|😀再见。",
    "网址是www.example.com，请看。|谢谢！",
]  # fmt: skip


def sentences_of(text: str, split: bool = True, lines: bool = False) -> list[str]:
    return split_sentences(Document(text, 0, lines_are_sentences=lines), build_splitter(split))


def check_whole(text: str, found: list[str]) -> None:
    assert "".join(found) == text
    assert all(sentence.strip() for sentence in found)
    assert not any(sentence[-1].isspace() for sentence in found)


@pytest.mark.parametrize("marked", [*ENGLISH, *CHINESE])
def test_hand_made_case(marked: str) -> None:
    marked = marked.strip()
    assert sentences_of(marked.replace("|", "")) == marked.split("|")


def test_long_quotation_is_cut_inside() -> None:
    quoted = (
        '"You did not know, Dr. Mortimer, that you were followed this morning from my house?| Your brother was there. '
        "I have ample evidence that you are being dogged in London!| If their intentions are evil they might do you a "
        'mischief."| He rose.'
    )
    quoted = quoted.replace("there. I", "there.| I")
    assert sentences_of(quoted.replace("|", "")) == quoted.split("|")
    goes_on = '"Is it so?" he asked the man who stood at the window. ' * 5
    assert all(sentence.endswith(".") for sentence in sentences_of(goes_on.strip()))


def test_long_quotation_in_single_quotes() -> None:
    quoted = (
        "'Why not have a great actress of our name, as well as an authoress, a minister, and an eminent publisher?|"
        " We don't choose our talents, but we needn't hide them in a napkin because they are not just what we want.|"
        " I say, let Jo have her way, and do what she can.'| She rose."
    )
    assert sentences_of(quoted.replace("|", "")) == quoted.split("|")


def test_text_of_a_fixed_width() -> None:
    text = (
        "It was a bright\ncold day in April, and\nthe clocks. He\nwent in through\nthe doors.\n\nA new\nparagraph here."
    )
    expected = ["It was a bright\ncold day in April, and\nthe clocks.", " He\nwent in through\nthe doors."]
    assert sentences_of(text) == [*expected, "\n\nA new\nparagraph here."]
    poem = "Roses are red.\nviolets\nAre\nBlue\nThings"
    assert sentences_of(poem) == ["Roses are red.", "\nviolets", "\nAre", "\nBlue", "\nThings"]


def test_lines_are_sentences() -> None:
    text = "One. Two.\nThree\n\n \nFour\t\nFive。六。"
    assert sentences_of(text, lines=True) == ["One. Two.", "\nThree", "\n\n \nFour", "\t\nFive。六。"]
    assert sentences_of(text, split=False) == sentences_of(text, lines=True)
    assert sentences_of("a\0b\nc", lines=True) == ["a\0b", "\nc"]


def test_nothing_and_one() -> None:
    assert sentences_of("") == [] and sentences_of("a") == ["a"] and sentences_of("。") == ["。"]


CHARACTERS = st.text(st.sampled_from("aB9 .!?。！？…”“\"’')）_*\n\t\u3000\u00a0中文说，：\0😀\x85-"), max_size=60)


@settings(max_examples=600, deadline=None)
@given(CHARACTERS)
def test_no_character_is_lost(text: str) -> None:
    text = text.strip()
    for split, lines in ((True, False), (False, False), (True, True)):
        check_whole(text, sentences_of(text, split, lines))


@pytest.mark.parametrize("text", ["B\u3000.", "B.\u3000A", "a. \u2003b.\xa0C.", "Mr.\u3000Smith.\u2028x."])
def test_wide_white_space(text: str) -> None:
    """sentencex panics at some of these."""
    check_whole(text, sentences_of(text))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_character_of_any_text_is_lost(text: str) -> None:
    check_whole(text.strip(), sentences_of(text.strip()))


@pytest.mark.parametrize(
    "unit", ["Mr. Smith said “ok. Not (so) fine”. ", "他说：“好。不行！", "“", "a. ", "word ", "!" * 10]
)
def test_long_lines(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a window goes to sentencex, whose time is quadratic in the quotations of what it gets."""
    given_lengths = []

    def segment(language: str, text: str) -> list[str]:
        given_lengths.append(len(text))
        return sentencex.segment(language, text)

    monkeypatch.setattr(sentences, "sentencex", SimpleNamespace(segment=segment))
    text = (unit * (120_000 // len(unit))).strip()
    check_whole(text, sentences_of(text))
    assert max(given_lengths, default=0) <= sentences.WINDOW
    assert sum(given_lengths) < 3 * len(text)


@pytest.mark.parametrize("run", ["!", "\t", ")", '"', "”", ".", "…", "。", " ", "\n", "_", "“. ", "! '", "\0", "。”"])
def test_runs_take_linear_time(run: str) -> None:
    """With quadratic time in a rule this takes minutes."""
    for text in (f"中。x{run * 200_000}x", f"Yes. No! {run * 200_000}x", f"x\ny。\u3000{run * 200_000}。中"):
        check_whole(text, sentences_of(text))


def test_line_of_many_megabytes() -> None:
    for unit in ("word word ", "A sentence. "):
        text = (unit * 4_000_000).strip()
        assert len(sentences_of(text)) == text.count(".") + (text[-1] != ".")


def test_windows_change_little() -> None:
    words = random.Random(0)
    line = " ".join(
        " ".join(words.choices(["the", "Mr.", "dog", "3.5", "“a”", "ran"], k=9)) + " end." for _ in range(2000)
    )
    pieces = [sentences_of(part + "end.") for part in line.split("end.") if part]
    assert abs(len(sentences_of(line)) - sum(map(len, pieces))) <= len(line) // 4096


@pytest.mark.parametrize(
    "name", ["raw_en_classics", "raw_en_wikitext2_sample", "raw_zh_clue_news", "cls_zh_book_review", "sample"]
)
def test_real_text_is_whole(shared_data: Path, name: str) -> None:
    for path in sorted((shared_data / name).iterdir()):
        text = path.read_text(encoding="utf-8", errors="replace")
        check_whole(text.strip(), sentences_of(text.strip()))
        for line in text.split("\n")[:200]:
            check_whole(line.strip(), sentences_of(line.strip()))


def test_agrees_with_sentences_of_the_news_sample(shared_data: Path) -> None:
    """The same documents cut by their publisher at 。！？ and (not compared) at each dot, even in 56.03."""
    folder = shared_data / "raw_zh_clue_news"
    documents = (folder / "doc_per_line.txt").read_text(encoding="utf-8").strip().split("\n")
    reference = (folder / "sentence_per_line_blank_between_docs.txt").read_text(encoding="utf-8").split("\n\n")
    theirs, ours = set(), set()
    for number, (document, lines) in enumerate(zip(documents, reference, strict=False)):
        text = "".join(document.split())
        ends = ends_without_spaces(lines.strip().split("\n"))
        theirs |= {(number, end) for end in ends if text[end - 1 : end] != "."}
        ends = ends_without_spaces(sentences_of(document.strip()))
        ours |= {(number, end) for end in ends if text[end - 1 : end] != "."}
    both = len(theirs & ours)
    assert both / len(ours) > 0.97 and both / len(theirs) > 0.97


def test_sentences_of_parallel_news(shared_data: Path) -> None:
    """Lines of one sentence each (mostly), joined to paragraphs, come apart again."""
    path = shared_data / "raw_zh_clue_news" / "news_commentary_en_zh.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").strip().split("\n")]
    for column, separator, least in ((0, " ", 0.95), (1, "", 0.95)):
        lines = [row[column].strip() for row in rows if len(row) == 2 and re.search("[.。]$", row[column].strip())]
        theirs, ours = set(), set()
        for number in range(0, len(lines), 5):
            paragraph = lines[number : number + 5]
            theirs |= {(number, end) for end in ends_without_spaces(paragraph)}
            ours |= {(number, end) for end in ends_without_spaces(sentences_of(separator.join(paragraph)))}
        assert len(theirs & ours) / len(theirs) > least
        assert len(theirs & ours) / len(ours) > 0.85


def ends_without_spaces(found: list[str]) -> list[int]:
    """Return where sentences end, in characters that are not white space."""
    ends, end = [], 0
    for sentence in found:
        end += len("".join(sentence.split()))
        ends.append(end)
    return ends


@settings(max_examples=300, deadline=None)
@given(CHARACTERS, st.integers(1, 40))
def test_no_character_of_a_long_paragraph_is_lost(text: str, size: int) -> None:
    text = text.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "LONG_PARAGRAPH", size)
        check_whole(text, sentences_of(text))


@pytest.mark.parametrize("size", [200, 201, 357, 5000])
def test_a_long_paragraph_has_the_same_sentences(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(5)
    words = ["Mr. Smith", "the cat", "3.50", "went", "“home”", "(again)", "U.S."]
    parts = [" ".join(generator.choices(words, k=generator.randint(2, 9))) + ". It ended" for _ in range(300)]
    text = ". ".join(parts) + "。" + "他说：“好。”然后走了。我不知道！" * 40
    whole = sentences_of(text)
    monkeypatch.setattr(sentences, "LONG_PARAGRAPH", size)
    assert sentences_of(text) == whole
