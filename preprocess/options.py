"""The options of each command, and the settings that they make."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from typing import Any, NoReturn

from preprocess.building.settings import (
    DEFAULT_HELDOUT,
    DEFAULT_SHARD_BYTES,
    EXECUTORS,
    ShardSettings,
)
from preprocess.cleaning.settings import CONTROL_CHARACTERS, DEDUPLICATE, NORMAL_FORMS, CleaningSettings
from preprocess.corpus.corpus import INCOMPLETE_RECORDS, INVALID_UTF8, CorpusSettings
from preprocess.corpus.layouts import ALL_LAYOUTS
from preprocess.importing.nvidia_import import ImportSettings
from preprocess.inspecting.inspection import NUM_SAMPLES
from preprocess.shards import COMPRESSIONS
from preprocess.tokenizer.training import TYPES, TrainingSettings
from preprocess.words import SEGMENTERS

USER_ERROR = 2
CORPUS_HELP = (
    "[NAME=]FILE, folders (recursive, hidden files skipped), patterns, or - for standard input, taken in this order; "
    "each is a source, and NAME names it"
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors look like all other errors of these commands."""

    def error(self, message: str) -> NoReturn:
        """Print the message, without the usage, and end with exit code 2."""
        self.exit(USER_ERROR, f"error: {message} (`{self.prog} --help` shows what there is)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_off = action.default is None or action.default is False or action.default == []
        return action.help if is_off else super()._get_help_string(action)


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """Add what describes the corpus."""
    group = parser.add_argument_group("corpus")
    required(group, "--corpus", nargs="+", action="extend", metavar="FILE", help=CORPUS_HELP)
    group.add_argument(
        "--layout",
        nargs="+",
        action="extend",
        metavar="[NAME=]LAYOUT",
        help=f"how documents lie in the files, of all sources or of NAME: auto (default), {', '.join(ALL_LAYOUTS)}",
    )
    group.add_argument(
        "--text_field",
        nargs="+",
        action="extend",
        metavar="[NAME=]FIELD",
        help="field of jsonl and parquet files that holds the text (default: text); a.b is field b of object a",
    )
    group.add_argument(
        "--invalid_utf8", choices=INVALID_UTF8, default="error", help="what to do with text that is not UTF-8"
    )
    group.add_argument(
        "--incomplete_records",
        choices=INCOMPLETE_RECORDS,
        default="error",
        help="what to do with JSON lines without the text field and lines without their columns or label",
    )
    group.add_argument(
        "--max_expansion",
        type=integer,
        default=CorpusSettings.max_expansion,
        metavar="N",
        help="refuse a compressed file that grows more than N times",
    )


def corpus_settings(options: argparse.Namespace) -> CorpusSettings:
    """Return the settings of the corpus options."""
    return CorpusSettings(
        arguments=tuple(options.corpus),
        layout=tuple(options.layout or CorpusSettings.layout),
        text_field=tuple(options.text_field or CorpusSettings.text_field),
        invalid_utf8=options.invalid_utf8,
        incomplete_records=options.incomplete_records,
        max_expansion=options.max_expansion,
    )


def add_cleaning_options(parser: argparse.ArgumentParser) -> None:
    """Add what cleans and filters the text."""
    group = parser.add_argument_group("cleaning (each drop is counted)")
    group.add_argument(
        "--control_characters", choices=CONTROL_CHARACTERS, default="keep", help="in the text; drop drops the document"
    )
    group.add_argument("--normal_form", choices=NORMAL_FORMS, default="none", help="Unicode normal form")
    group.add_argument(
        "--simplify",
        type=boolean,
        default=False,
        metavar="true|false",
        help="traditional to simplified Chinese (OpenCC)",
    )
    group.add_argument("--min_characters", type=integer, metavar="N", help="drop shorter documents")
    group.add_argument("--max_characters", type=integer, metavar="N", help="drop longer documents")
    group.add_argument(
        "--drop_matching",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGEX",
        help="drop documents in which one is found",
    )
    group.add_argument(
        "--keep_matching",
        nargs="+",
        action="extend",
        default=[],
        metavar="REGEX",
        help="keep only documents in which one is found",
    )
    group.add_argument(
        "--min_script_share",
        nargs="+",
        action="extend",
        default=[],
        metavar="SCRIPT:SHARE",
        help="least share of a document's letters, as in Han:0.5",
    )
    group.add_argument(
        "--deduplicate", choices=DEDUPLICATE, default="none", help="drop exact repetitions, the first stays"
    )
    group.add_argument(
        "--split_sentences",
        type=boolean,
        default=True,
        metavar="true|false",
        help="of text that is not one sentence a line",
    )
    group.add_argument("--dropped", metavar="FILE", help="write what is dropped there, as JSON lines")


def cleaning_settings(options: argparse.Namespace) -> CleaningSettings:
    """Return the settings of the cleaning options."""
    return CleaningSettings(
        control_characters=options.control_characters,
        normal_form=options.normal_form,
        simplify=options.simplify,
        min_characters=options.min_characters,
        max_characters=options.max_characters,
        drop_matching=tuple(options.drop_matching),
        keep_matching=tuple(options.keep_matching),
        min_script_share=tuple(options.min_script_share),
        deduplicate=options.deduplicate,
        split_sentences=options.split_sentences,
    )


def add_tokenizer_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``tokenizer``."""
    add_corpus_options(parser)
    group = parser.add_argument_group("tokenizer")
    required(group, "--output", metavar="DIR", help="folder to write; transformers.AutoTokenizer loads it")
    group.add_argument("--type", choices=TYPES, default="wordpiece", help="kind of tokenizer")
    group.add_argument("--vocab_size", type=integer, default=30522, metavar="N", help="tokens, special ones included")
    group.add_argument(
        "--lowercase",
        type=boolean,
        default=None,
        metavar="true|false",
        help="lower-case text and strip accents (default: true for wordpiece)",
    )
    group.add_argument(
        "--min_frequency", type=integer, metavar="N", help="least occurrences of a character, pair or word (default: 2)"
    )
    group.add_argument(
        "--special_tokens", nargs="+", action="extend", default=[], metavar="TOKEN", help="further special tokens"
    )
    group.add_argument(
        "--character_coverage",
        type=number,
        default=1.0,
        metavar="SHARE",
        help="share of the text's characters to have tokens for",
    )
    group.add_argument(
        "--sample_bytes", type=integer, metavar="N", help="train on an evenly spread sample of about N bytes"
    )
    add_workers_option(group)


def training_settings(options: argparse.Namespace) -> TrainingSettings:
    """Return the settings of ``tokenizer``."""
    return TrainingSettings(
        type=options.type,
        vocab_size=options.vocab_size,
        lowercase=options.lowercase,
        min_frequency=options.min_frequency,
        special_tokens=tuple(options.special_tokens),
        character_coverage=options.character_coverage,
        sample_bytes=options.sample_bytes,
    )


def add_shards_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``shards``."""
    add_corpus_options(parser)
    add_cleaning_options(parser)
    group = parser.add_argument_group("shards")
    required(
        group,
        "--tokenizer",
        metavar="PATH",
        help="tokenizer or model folder, vocab.txt, tokenizer.json or SentencePiece model",
    )
    required(group, "--output", metavar="DIR", help="folder to write; the same command goes on with an unfinished one")
    group.add_argument(
        "--heldout", type=number, default=DEFAULT_HELDOUT, metavar="SHARE", help="documents kept for evaluation"
    )
    group.add_argument(
        "--shard_bytes", type=integer, default=DEFAULT_SHARD_BYTES, metavar="N", help="bytes of text per shard"
    )
    group.add_argument("--compression", choices=COMPRESSIONS, default="zstd", help="gzip and none need no plugin")
    group.add_argument(
        "--lowercase", type=boolean_or_auto, default=None, metavar="auto|true|false", help="for a bare vocab.txt"
    )
    group.add_argument(
        "--word_segmenter", choices=SEGMENTERS, help="mark where words start, for whole-word masking of Chinese"
    )
    group.add_argument(
        "--user_dictionary", metavar="FILE", help="words for the segmenter: word [frequency [tag]] a line"
    )
    add_workers_option(group)
    group.add_argument(
        "--part", metavar="I/N", help="do one of N shares of the work; `finish` then completes the folder"
    )
    group.add_argument(
        "--executor", choices=EXECUTORS, default="local", help="processes of this machine, or a Ray cluster"
    )


def shard_settings(options: argparse.Namespace) -> ShardSettings:
    """Return the settings of ``shards``."""
    return ShardSettings(
        corpus=corpus_settings(options),
        cleaning=cleaning_settings(options),
        tokenizer=options.tokenizer,
        output=options.output,
        workers=options.workers,
        heldout=options.heldout,
        shard_bytes=options.shard_bytes,
        compression=options.compression,
        lowercase=options.lowercase,
        word_segmenter=options.word_segmenter,
        user_dictionary=options.user_dictionary,
        dropped=options.dropped,
        part=options.part,
        executor=options.executor,
    )


def add_inspect_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``inspect``."""
    parser.add_argument("folder", help="a shard folder, as `shards --output` made it")
    parser.add_argument("--samples", type=integer, default=NUM_SAMPLES, metavar="N", help="random documents to show")
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="which documents are drawn")
    parser.add_argument("--html", metavar="FILE", help="write the same as one page with plots (needs matplotlib)")
    add_workers_option(parser)


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``merge``."""
    parser.add_argument(
        "folders", nargs="+", metavar="[NAME=]FOLDER", help="shard folders; NAME/ goes before its sources' names"
    )
    required(parser, "--output", metavar="DIR", help="new folder")
    add_workers_option(parser)


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``split``."""
    parser.add_argument("folder", help="a shard folder, as `shards --output` made it")
    required(parser, "--output", metavar="DIR", help="folder for the parts")
    parser.add_argument("--into", type=integer, metavar="N", help="parts of nearly equal numbers of tokens, in order")
    parser.add_argument("--by", choices=["source"], help="a folder for each source")
    add_workers_option(parser)


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``import``."""
    parser.add_argument("files", nargs="+", metavar="[NAME=]FILE", help="HDF5 files (input_ids, masked_lm_ids, ...)")
    required(parser, "--tokenizer", metavar="PATH", help="the tokenizer that they were made with")
    required(parser, "--output", metavar="DIR", help="new folder")
    parser.add_argument(
        "--heldout", type=number, default=DEFAULT_HELDOUT, metavar="SHARE", help="documents kept for evaluation"
    )
    parser.add_argument(
        "--keep_duplicates",
        type=boolean,
        default=False,
        metavar="true|false",
        help="static files hold each text several times, masked in other ways; once is enough here",
    )
    parser.add_argument("--compression", choices=COMPRESSIONS, default="zstd", help="gzip and none need no plugin")
    parser.add_argument(
        "--lowercase", type=boolean_or_auto, default=None, metavar="auto|true|false", help="for a bare vocab.txt"
    )
    add_workers_option(parser)


def import_settings(options: argparse.Namespace) -> ImportSettings:
    """Return the settings of ``import``."""
    return ImportSettings(**{field.name: getattr(options, field.name) for field in fields(ImportSettings)})


def add_workers_option(parser: Any) -> None:
    """Add the number of processes."""
    parser.add_argument("--workers", type=integer, default=_num_cores(), metavar="N", help="processes")


def required(parser: Any, name: str, **settings: Any) -> None:
    """Add an option that must be given."""
    parser.add_argument(name, required=True, default=argparse.SUPPRESS, **settings)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def integer(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def boolean(text: str) -> bool:
    """Parse true or false."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def boolean_or_auto(text: str) -> bool | None:
    """Parse true, false or auto (None)."""
    return None if text == "auto" else boolean(text)
