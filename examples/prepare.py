"""Make examples/corpus and examples/reviews from the three source files that examples/README.md names.

    python examples/prepare.py --source FOLDER [--output examples]

The same source files give the same bytes: texts are ordered by their SHA-256, never by chance.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

NOVEL, POEMS, REVIEWS = "en_northanger_abbey.txt", "zh_tang300_song100.txt", "zh_reviews_800.tsv"
SPLITS = {"train": 0.7, "dev": 0.15, "test": 0.15}
EDITORS_NOTE = "\nA NOTE ON THE TEXT\n"  # a modern editor's, not the novel's
POEM_TITLE = re.compile(r"(?:题目[:：])?《(?P<title>.+)》(?P<rest>.*)")
POEM_AUTHOR = re.compile(r"作者[:：](?P<name>[^（]+)")  # without the compilers' dates
WEB_ADDRESS = re.compile(r"https?:|www\.|@")


def clean_novel(text: str) -> str:
    """Return the novel, a paragraph a line and a blank line between chapters, without the modern note at its end."""
    novel, _, _ = text.partition(EDITORS_NOTE)
    return novel.strip() + "\n"


def clean_poems(text: str) -> str:
    """Return title, author and lines of each poem, a blank line between poems; the compilation's labels are dropped."""
    poems: list[list[str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        title, author = POEM_TITLE.fullmatch(line), POEM_AUTHOR.match(line)
        if title:
            poems.append([title["title"] + title["rest"]])
        elif author:
            poems[-1].append(author["name"].strip())
        else:
            poems[-1].append(line)
    return "\n\n".join("\n".join(poem) for poem in poems) + "\n"


def clean_reviews(text: str) -> dict[str, list[str]]:
    """Return label -> distinct review texts.

    A text with two labels and a text with a web or mail address are left out.

    Args:
        text: lines ``label TAB text`` under a header line.
    """
    labels: dict[str, set[str]] = {}
    for line in text.splitlines()[1:]:
        label, review = line.split("\t")
        if not WEB_ADDRESS.search(review):
            labels.setdefault(" ".join(review.split()), set()).add(label)
    reviews: dict[str, list[str]] = {}
    for review in sorted(labels, key=_digest):
        if len(labels[review]) == 1:
            reviews.setdefault(labels[review].pop(), []).append(review)
    return reviews


def split_reviews(reviews: dict[str, list[str]]) -> dict[str, list[tuple[str, str]]]:
    """Return split -> (label, text) rows; every label has the same share of each split, no text is in two."""
    per_label = min(map(len, reviews.values()))
    rows: dict[str, list[tuple[str, str]]] = {}
    start = 0
    for name, share in SPLITS.items():
        stop = per_label if name == list(SPLITS)[-1] else start + round(share * per_label)
        chosen = [(label, text) for label, texts in reviews.items() for text in texts[start:stop]]
        rows[name] = sorted(chosen, key=lambda row: _digest(row[1]))
        start = stop
    return rows


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file, UTF-8 with Unix line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    print(f"{path}: {path.stat().st_size:,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the source files and write the example files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help=f"folder with {NOVEL}, {POEMS} and {REVIEWS}")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    options = parser.parse_args(arguments)
    texts = {name: (options.source / name).read_text(encoding="utf-8") for name in (NOVEL, POEMS, REVIEWS)}
    corpus, splits = options.output / "corpus", split_reviews(clean_reviews(texts[REVIEWS]))
    write_lines(corpus / NOVEL, clean_novel(texts[NOVEL]).splitlines())
    write_lines(corpus / "zh_poems.txt", clean_poems(texts[POEMS]).splitlines())
    write_lines(corpus / "reviews.txt", [text for _, text in splits["train"]])  # pretraining sees no dev or test text
    for name, rows in splits.items():
        write_lines(options.output / "reviews" / f"{name}.tsv", ["label\ttext_a", *("\t".join(row) for row in rows)])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
