"""Inputs of a command: the files of its --corpus arguments, and what each of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from preprocess.corpus.arguments import STANDARD_INPUT, expand, parse_arguments, source_names
from preprocess.corpus.corpus import Corpus, CorpusSettings
from preprocess.corpus.layouts import PAIRED_TSV
from preprocess.corpus.reports import describe_layouts
from preprocess.corpus.spooling import NAME as SPOOLED_NAME
from preprocess.corpus.spooling import spool_standard_input
from preprocess.corpus.survey import MAX_CORPUS_LABELS, Survey, survey_files, too_many_labels
from preprocess.progress import progress_bar

ProgressBar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def open_corpus(
    settings: CorpusSettings,
    spool: Path | None,
    num_workers: int = 1,
    progress: ProgressBar = progress_bar,
) -> tuple[Corpus, list[str]]:
    """Find the files of a corpus and what each of them is.

    Compressed files, parquet and labelled lines are read through once, in parallel.

    Args:
        spool: folder for standard input, made when it is needed; None if no argument is standard input.
        progress: makes the progress bar of that.

    Returns:
        the corpus, and lines that tell the user what was found.

    Raises:
        ValueError: for whatever is wrong with the settings or the files.
        OSError: if standard input does not fit on the disk.
    """
    problems = settings.problems()
    if problems:
        raise ValueError("; ".join(problems))
    arguments = parse_arguments(settings.arguments)
    names = source_names(arguments)
    layout_of = _by_source("layout", settings.layout, names)
    field_of = _by_source("text_field", settings.text_field, names)
    wanted = [
        Survey(
            path,
            name,
            source,
            layout_of[source],
            field_of[source],
            settings.invalid_utf8,
            settings.max_expansion,
            settings.incomplete_records,
        )
        for source, argument in enumerate(arguments)
        for path, name in _files(argument.path, spool)
    ]
    surveys = survey_files(wanted, num_workers, progress)
    files = []
    start = 0
    for survey in surveys:
        files.append(replace(survey.file, start=start))
        start += survey.file.num_bytes
    if not any(survey.report.num_lines for survey in surveys):
        raise ValueError(f"the corpus is empty: no text in {', '.join(settings.arguments)} ({len(files)} files)")
    corpus = Corpus(
        names,
        tuple(files),
        _sorted_labels(survey.report.labels for survey in surveys),
        any(survey.has_second or survey.file.layout == PAIRED_TSV for survey in surveys),
        settings,
    )
    return corpus, describe_layouts([survey.report for survey in surveys])


def _files(path: str, spool: Path | None) -> list[tuple[str, str]]:
    if path == STANDARD_INPUT:
        if spool is None:
            raise ValueError("standard input is a source: a folder to keep it in is needed")
        return [(str(spool_standard_input(spool)), SPOOLED_NAME)]
    return expand(path)


def _sorted_labels(labels_of_files: Iterable[frozenset[str]]) -> tuple[str, ...]:
    """Return all labels: by number if all are whole numbers, else by text."""
    labels = frozenset().union(*labels_of_files)
    if len(labels) > MAX_CORPUS_LABELS:
        raise too_many_labels("--corpus")
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _by_source(what: str, given: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the setting of each source: the plain one, or that given as NAME=VALUE."""
    default = {"layout": "auto", "text_field": "text"}[what]
    special: dict[str, str] = {}
    for value in given:
        name, equals, rest = value.partition("=")
        if not equals:
            default = value
        elif name not in names:
            raise ValueError(f"{what} is {value!r}, and there is no source {name!r}; sources: {', '.join(names)}")
        else:
            special[name] = rest
    return [special.get(name, default) for name in names]
