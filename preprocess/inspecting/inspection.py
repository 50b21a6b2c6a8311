"""Shows what a shard folder holds: the same facts as lines of text and as one page with plots."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

from preprocess.files import write_atomically
from preprocess.folders.counts import count_problems
from preprocess.folders.verification import check_workers, has_heldout
from preprocess.inspecting.facts import Section, describe
from preprocess.inspecting.page import render_page, require_plots
from preprocess.inspecting.samples import draw_documents, read_samples
from preprocess.inspecting.shard_statistics import gather_statistics
from preprocess.manifest import read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER
from preprocess.tokenizer import load_tokenizer

NUM_SAMPLES = 5
BAR_WIDTH = 40


def inspect_folder(
    folder: Path | str,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    num_workers: int = 1,
    html: Path | str | None = None,
) -> Iterator[str]:
    """Yield lines about a shard folder: sources, counts, lengths, vocabulary, random documents.

    Args:
        num_samples: documents to show.
        seed: which ones; the same seed shows the same.
        num_workers: processes that read the shards.
        html: file to write the same to, as one page with plots.

    Raises:
        ValueError: if it is no shard folder, its manifest contradicts itself, or a shard is damaged;
            or matplotlib is missing for ``html``.
    """
    check_workers(num_workers)
    if num_samples < 0 or seed < 0:
        raise ValueError(f"samples is {num_samples} and seed is {seed}: both are 0 or more")
    if html is not None:
        require_plots()
        if Path(html).is_dir() or not Path(html).resolve().parent.is_dir():
            raise ValueError(f"--html {html}: give the name of a file in a folder that exists")
    manifest = read_manifest(folder)
    heldout = read_manifest(manifest.folder / HELDOUT_FOLDER) if has_heldout(manifest) else None
    if problems := count_problems(manifest, heldout):
        raise ValueError(problems[0])
    own = Path(folder) / TOKENIZER_FOLDER  # a heldout/ folder uses the one beside it
    tokenizer_folder = own if own.is_dir() else Path(folder).resolve().parent / TOKENIZER_FOLDER
    tokenizer = load_tokenizer(tokenizer_folder)
    if (tokenizer.digest, tokenizer.vocab_size) != (manifest.tokenizer["digest"], manifest.tokenizer["vocab_size"]):
        raise ValueError(
            f"{tokenizer_folder} is not the tokenizer that {folder} was made with; "
            "`python -m preprocess verify` tells which files are wrong"
        )
    statistics = gather_statistics(manifest, tokenizer, num_workers)
    samples = read_samples(manifest, tokenizer, draw_documents(manifest, num_samples, seed))
    sections = list(describe(manifest, heldout, tokenizer, statistics, samples))
    for section in sections:
        yield from render(section)
    if html is not None:
        write_atomically(Path(html), render_page(manifest, statistics, sections).encode())
        yield f"wrote {html}"


def render(section: Section) -> Iterator[str]:
    """Yield a section as lines of text; columns are aligned, numbers to the right."""
    is_first = section.title == "folder"
    if not is_first:
        yield f"{section.title}:"
    for line in section.lines:
        yield line if is_first else f"  {line}"
    if not section.rows:
        return
    table = [section.header, *section.rows]
    widths = [max(width(row[column]) for row in table) for column in range(len(section.header))]
    for number, row in enumerate(table):
        cells = [
            pad(cell, size, section.is_number(column))
            for column, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        bar = ""
        if number and section.bars:
            bar = "#" * round(BAR_WIDTH * section.bars[number - 1] / max(section.bars))
        yield f"  {'  '.join(cells)}  {bar}".rstrip()


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def pad(text: str, size: int, to_the_right: bool) -> str:
    """Fill a cell up with spaces."""
    space = " " * (size - width(text))
    return space + text if to_the_right else text + space
