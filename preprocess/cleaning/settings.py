"""What cleaning does: these settings decide the content of the shards, so they go into the manifest."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import platform
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

CONTROL_CHARACTERS = ("keep", "remove", "drop")
NORMAL_FORMS = ("none", "NFC", "NFKC", "NFD", "NFKD")
DEDUPLICATE = ("none", "documents", "sentences")

# Script names that users write, for near names in errors; every Unicode script name and ISO 15924 code is allowed.
SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Bopomofo", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati",
    "Gurmukhi", "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer", "Lao", "Latin", "Malayalam",
    "Mongolian", "Myanmar", "Oriya", "Sinhala", "Syriac", "Tamil", "Telugu", "Thaana", "Thai", "Tibetan", "Tifinagh",
    "Yi", "Arab", "Cyrl", "Deva", "Grek", "Hang", "Hani", "Hebr", "Hira", "Kana", "Latn",
)  # fmt: skip
LANGUAGES = {
    "chinese": "Han", "english": "Latin", "french": "Latin", "german": "Latin", "japanese": "Hiragana",
    "korean": "Hangul", "russian": "Cyrillic", "spanish": "Latin", "hindi": "Devanagari",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CleaningSettings:
    """Which texts are changed, and which are dropped; in the order in which it happens. All is off by default."""

    control_characters: str = "keep"  # remove: those that are white space become a space; drop: the document
    normal_form: str = "none"  # Unicode normal form of the text
    simplify: bool = False  # traditional to simplified Chinese, by OpenCC's t2s
    min_characters: int | None = None  # of a document's text, in code points
    max_characters: int | None = None
    drop_matching: Sequence[str] = ()  # regular expressions: a document is dropped if one of them is found in it
    keep_matching: Sequence[str] = ()  # ... is kept only if one of them is found in it
    min_script_share: Sequence[str] = ()  # SCRIPT:SHARE, least share of a script among the letters of a document
    deduplicate: str = "none"  # exact duplicates: whole documents, or sentences
    split_sentences: bool = True  # false: each line of prose is a sentence

    def problems(self) -> list[str]:
        """Everything wrong with these settings, in the user's words."""
        return [
            *_choice("control_characters", self.control_characters, CONTROL_CHARACTERS),
            *_choice("normal_form", self.normal_form, NORMAL_FORMS),
            *_choice("deduplicate", self.deduplicate, DEDUPLICATE),
            *_missing("simplify", "opencc", self.simplify),
            *_missing("split_sentences", "sentencex", self.split_sentences),
            *_missing("min_script_share", "regex", bool(self.min_script_share)),
            *_lengths(self.min_characters, self.max_characters),
            *_patterns("drop_matching", self.drop_matching),
            *_patterns("keep_matching", self.keep_matching),
            *_script_shares(self.min_script_share),
        ]


def cleaning_versions(settings: CleaningSettings) -> dict[str, str]:
    """Return the versions of what decides the bytes that these settings leave, for a manifest."""
    python = python_versions()
    versions = {}
    if settings.normal_form != "none" or settings.drop_matching or settings.keep_matching:
        versions["unicodedata"] = python["unicodedata"]
    if settings.drop_matching or settings.keep_matching:
        versions["re"] = python["re"]
    packages = {"opencc": settings.simplify, "regex": settings.min_script_share, "sentencex": settings.split_sentences}
    versions.update({name: importlib.metadata.version(name) for name, is_used in packages.items() if is_used})
    return versions


def python_versions() -> dict[str, str]:
    """Return the versions of what cleaning uses of Python itself."""
    return {"unicodedata": unicodedata.unidata_version, "re": ".".join(platform.python_version_tuple()[:2])}


def script_share(text: str) -> tuple[str, float]:
    """Return script and share of "Han:0.3".

    Raises:
        ValueError: for another form, an unknown script or a share that is not above 0 and at most 1.
    """
    import regex

    script, separator, number = text.partition(":")
    try:
        share = float(number) if separator else -1.0
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(
            f"min_script_share ({text!r}) must be SCRIPT:SHARE with a share above 0 up to 1, as in Han:0.3"
        )
    try:
        if not re.fullmatch("\\w+", script):
            raise regex.error("no name")
        regex.compile(f"\\p{{Script={script}}}")
    except regex.error:
        raise ValueError(f"min_script_share ({text!r}): there is no script {script!r}{_near_script(script)}") from None
    return script, share


def _near_script(name: str) -> str:
    if name.lower() in LANGUAGES:
        return f", a language; did you mean {LANGUAGES[name.lower()]}?"
    by_lower = {script.lower(): script for script in SCRIPTS}
    near = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(by_lower[script] for script in near)}?"
    return "; names are those of Unicode scripts, as Han, Latin, Cyrillic, Arabic, Hangul, Hiragana"


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> list[str]:
    return [] if value in allowed else [f"{name} ({value!r}) must be one of: {', '.join(allowed)}"]


def _missing(name: str, package: str, is_wanted: bool) -> list[str]:
    if not is_wanted or importlib.util.find_spec(package):
        return []
    return [f"{name} needs the package {package}: pip install {package}"]


def _lengths(least: int | None, most: int | None) -> list[str]:
    problems = [
        f"{name} ({value}) must be at least 1"
        for name, value in (("min_characters", least), ("max_characters", most))
        if value is not None and value < 1
    ]
    if least is not None and most is not None and least > most:
        problems.append(f"min_characters ({least}) must not be above max_characters ({most})")
    return problems


def _patterns(name: str, patterns: Sequence[str]) -> list[str]:
    problems = []
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            where = "" if error.pos is None else f" at character {error.pos + 1}"
            problems.append(f"{name} ({pattern!r}) is no regular expression: {error.msg}{where}")
    return problems


def _script_shares(shares: Sequence[str]) -> list[str]:
    problems: list[str] = []
    if not importlib.util.find_spec("regex"):
        return problems
    for share in shares:
        try:
            script_share(share)
        except ValueError as error:
            problems.append(str(error))
    return problems
