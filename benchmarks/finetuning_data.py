"""The fine-tuning tasks of ``finetuning.py``: their files for this engine, and the same examples as plain lists."""

from __future__ import annotations

import ast
import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SENTINEL = "ANSWERNOTFOUND"  # SubjQA ends every review with it, and answers with it where there is no answer
PLACE_OF_DEV = 5  # of a file without a dev set: every fifth sentence is held out

Sentences = tuple[str, str | None, str]  # text, other text or None, label
Tagged = tuple[list[str], list[str]]  # words, tags


@dataclass(frozen=True)
class Question:
    """A question on a text; start is -1 where the text has no answer, or its place is not known."""

    key: str
    question: str
    context: str
    answers: tuple[str, ...]
    start: int


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A task of the comparison.

    Attributes:
        name: in results.
        task: of finetune/run.py.
        figure: that tells which model is better, as finetune/run.py names it.
        epochs: passes over the training file.
        max_length: tokens of an example.
        folder: in the data folder.
        files: training file and file to measure on, in it, or made in the work folder by ``write``.
        options: of finetune/run.py beside the files.
        read: a file as plain examples; None where there is no other side.
        write: makes the files from the folder's; None where they are used as they are.
    """

    name: str
    task: str
    figure: str
    epochs: int
    max_length: int
    folder: str
    files: tuple[str, str]
    read: Callable[[Path], list[Any]] | None = None
    options: tuple[str, ...] = ()
    write: Callable[[Path, Path], None] | None = None

    def paths(self, data: Path, work: Path) -> tuple[Path, Path]:
        """Training file and file to measure on; those that are made are made now."""
        if self.write is None:
            train, dev = (data / self.folder / name for name in self.files)
            return train, dev
        made = work / "data" / self.name
        made.mkdir(parents=True, exist_ok=True)
        self.write(data / self.folder, made)
        return made / self.files[0], made / self.files[1]


def lines_of(path: Path) -> list[list[str]]:
    """Cells of a tab-separated file without quoting; a byte order mark and CRLF are taken off."""
    return [line.rstrip("\r\n").split("\t") for line in path.open(encoding="utf-8-sig", newline="\n")]


def columns(text: int, other: int | None, label: int, skip: int = 0) -> Callable[[Path], list[Sentences]]:
    """A reader of tab-separated files by the places of their columns."""

    def read(path: Path) -> list[Sentences]:
        rows = lines_of(path)[skip:]
        return [(row[text], None if other is None else row[other], row[label]) for row in rows]

    return read


def read_sentences(path: Path) -> list[Tagged]:
    """Sentences of a file with a word and its tag in each line, and blank lines between them, as BIO."""
    sentences: list[Tagged] = []
    words: list[str] = []
    tags: list[str] = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.strip():
            word, tag = line.split()
            words.append(word)
            tags.append(tag)
        elif words:
            if words != ["-DOCSTART-"]:
                sentences.append((words, begun(tags)))
            words, tags = [], []
    return sentences


def begun(tags: list[str]) -> list[str]:
    """IOB1 as BIO: what begins an entity is B, not I."""
    pairs = zip(["O", *tags], tags, strict=False)
    return [f"B{tag[1:]}" if tag[:1] == "I" and before[1:] != tag[1:] else tag for before, tag in pairs]


def split_sentences(folder: Path, made: Path) -> None:
    """Write every fifth sentence of WikiGold as a dev file, the others as a training file."""
    sentences = read_sentences(folder / "wikigold.conll")
    for name, is_dev in (("train.conll", False), ("dev.conll", True)):
        chosen = [s for number, s in enumerate(sentences) if (number % PLACE_OF_DEV == 0) == is_dev]
        text = "\n".join("".join(f"{word} {tag}\n" for word, tag in zip(*s, strict=True)) for s in chosen)
        (made / name).write_text(text, encoding="utf-8")


def read_reviews(path: Path) -> list[Question]:
    """SubjQA's questions; an answer that is not at its place, white space aside, is found where it stands once."""
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            answer, (start, end) = row["human_ans_spans"], ast.literal_eval(row["human_ans_indices"])
            text = row["review"].removesuffix(SENTINEL).rstrip()
            if answer == SENTINEL:
                found.append(Question(str(number), row["question"], text, (), -1))
                continue
            if "".join(text[start:end].split()) == "".join(answer.split()):
                answer = text[start:end]
            else:
                start = text.index(answer) if text.count(answer) == 1 else -1
            found.append(Question(str(number), row["question"], text, (answer,), start))
    return found


ENGLISH: Sequence[Dataset] = (
    Dataset(
        name="SST-2",
        task="classification",
        figure="accuracy",
        epochs=1,
        max_length=128,
        folder="cls_en_sst2",
        files=("train.tsv", "dev.tsv"),
        read=columns(0, None, 1),
        options=("--columns", "text_a,label"),
    ),
    Dataset(
        name="CoLA",
        task="classification",
        figure="matthews",
        epochs=2,
        max_length=128,
        folder="cls_en_cola",
        files=("train.tsv", "dev.tsv"),
        read=columns(3, None, 1),
        options=("--columns", "source,label,mark,text_a"),
    ),
    Dataset(
        name="MRPC",
        task="classification",
        figure="accuracy",
        epochs=2,
        max_length=128,
        folder="pair_en_mrpc",
        files=("train.tsv", "test.tsv"),
        read=columns(3, 4, 0, skip=1),
        options=("--columns", "label=Quality,text_a=#1 String,text_b=#2 String"),
    ),
    Dataset(
        name="STS-B",
        task="regression",
        figure="spearman",
        epochs=2,
        max_length=128,
        folder="sts_en_stsb",
        files=("train.csv", "dev.csv"),
        read=columns(5, 6, 4),
        options=("--columns", "genre,file,year,number,label,text_a,text_b,..."),
    ),
    Dataset(
        name="WikiGold",
        task="token_classification",
        figure="f1",
        epochs=4,
        max_length=128,
        folder="ner_en_wikigold_wnut17",
        files=("train.conll", "dev.conll"),
        read=read_sentences,
        write=split_sentences,
    ),
    Dataset(
        name="SubjQA",
        task="question_answering",
        figure="f1",
        epochs=1,
        max_length=256,
        folder="qa_en_subjqa",
        files=("grocery_train.csv", "grocery_dev.csv"),
        read=read_reviews,
        options=("--question_answering.doc_stride", "180"),
    ),
)
CHINESE: Sequence[Dataset] = (
    Dataset(
        name="book review",
        task="classification",
        figure="accuracy",
        epochs=1,
        max_length=192,
        folder="cls_zh_book_review",
        files=("train.tsv", "test.tsv"),
    ),
    Dataset(
        name="AFQMC",
        task="classification",
        figure="accuracy",
        epochs=1,
        max_length=128,
        folder="pair_zh_afqmc",
        files=("train.tsv", "dev.tsv"),
        options=("--columns", "text_a,text_b,label"),
    ),
    Dataset(
        name="Weibo NER",
        task="token_classification",
        figure="f1",
        epochs=10,
        max_length=192,
        folder="ner_zh_weibo",
        files=("train.conll", "test.conll"),
    ),
    Dataset(
        name="Resume NER",
        task="token_classification",
        figure="f1",
        epochs=3,
        max_length=192,
        folder="ner_zh_resume",
        files=("train.char.bmes", "test.char.bmes"),
    ),
    Dataset(
        name="CMRC 2018",
        task="question_answering",
        figure="f1",
        epochs=1,
        max_length=512,
        folder="qa_zh_cmrc2018",
        files=("dev.json", "trial.json"),
        options=("--question_answering.doc_stride", "256"),
    ),
    Dataset(
        name="STS-B zh",
        task="regression",
        figure="spearman",
        epochs=3,
        max_length=128,
        folder="sts_zh_stsb",
        files=("train.txt", "test.txt"),
        options=("--columns", "text_a,text_b,label"),
    ),
)
