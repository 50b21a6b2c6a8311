"""Reads the vocabulary and settings of a WordPiece tokenizer from the files that the field keeps them in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from preprocess.tokenizer.bert_pipeline import MAX_WORD_LENGTH, PREFIX, Normalization

MAX_VOCABULARY_BYTES = 1 << 28
ROLES = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "bos": "[BOS]",
    "eos": "[EOS]",
}


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What the files of a tokenizer say.

    Attributes:
        tokens: the vocabulary in id order.
        special_tokens: role -> token.
        notes: what was decided here, for the user to read.
    """

    tokens: list[str]
    special_tokens: dict[str, str]
    normalization: Normalization
    prefix: str = PREFIX
    max_word_length: int = MAX_WORD_LENGTH
    notes: list[str] = field(default_factory=list)


def read_tokenizer_files(path: Path, lowercase: bool | None = None) -> TokenizerFiles:
    """Read a tokenizer folder or a vocabulary file; see ``tokenizer.load_tokenizer``."""
    if not path.exists():
        raise ValueError(
            f"no tokenizer at {path}: give a folder with tokenizer.json or vocab.txt, or a vocab.txt file; "
            "`python -m preprocess tokenizer` trains one"
        )
    if path.is_file():
        return _from_vocabulary_file(path, lowercase)
    config = _read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    if (path / "tokenizer.json").is_file():
        return _agreeing(_from_tokenizer_json(path / "tokenizer.json", config), path, lowercase)
    if (path / "vocab.txt").is_file() and "do_lower_case" in config:
        return _agreeing(_from_vocabulary_and_config(path, config), path, lowercase)
    if (path / "vocab.txt").is_file():
        return _from_vocabulary_file(path / "vocab.txt", lowercase)
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ValueError(f"{path} holds no usable tokenizer (found {found}): needs a WordPiece tokenizer.json or vocab.txt")


def looks_cased(tokens: list[str]) -> bool:
    """Whether any entry other than "[...]" and "<...>" has an upper-case letter."""
    return any(token != token.lower() for token in tokens if not _is_bracketed(token))


def _is_bracketed(token: str) -> bool:
    return token[:1] + token[-1:] in ("[]", "<>")


def read_vocabulary(path: Path) -> list[str]:
    """Return the entries of a vocabulary file, one token a line, in order.

    Raises:
        ValueError: if the file is no such list, has an entry twice, or lacks [UNK].
    """
    data = path.read_bytes() if path.stat().st_size <= MAX_VOCABULARY_BYTES else b"\0"
    wanted = "needs a WordPiece vocabulary: UTF-8 text, one token a line, with [UNK]"
    if b"\0" in data:
        raise ValueError(f"{path} is a binary file, no vocabulary; {wanted}{_kind_hint(path)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no vocabulary: byte {error.start} is not UTF-8; {wanted}{_kind_hint(path)}"
        ) from None
    if text.lstrip()[:1] == "{":
        raise ValueError(f"{path} is JSON, no vocabulary; {wanted}; for a tokenizer.json give the folder that holds it")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    _check_entries(lines, path, wanted)
    return lines


def _check_entries(lines: list[str], path: Path, wanted: str) -> None:
    first_line: dict[str, int] = {}
    for number, token in enumerate(lines, start=1):
        if not token or any(character in token for character in " \t"):
            shown = "empty" if not token else repr(token[:60])
            raise ValueError(f"{path} is no vocabulary: line {number} is {shown}; {wanted}")
        if token in first_line:
            raise ValueError(
                f"{path}: {token!r} is on line {first_line[token]} and again on line {number}; every token needs one "
                "id, so remove or rename one of them"
            )
        first_line[token] = number
    if "[UNK]" not in first_line:
        raise ValueError(f"{path} has no [UNK] entry among {len(lines):,} lines; {wanted}")


def _kind_hint(path: Path) -> str:
    if path.suffix in (".model", ".spm", ".vocab"):
        return " (this looks like a SentencePiece model, which is not supported yet)"
    return ""


def _from_vocabulary_file(path: Path, lowercase: bool | None) -> TokenizerFiles:
    tokens = read_vocabulary(path)
    notes = []
    if lowercase is None:
        lowercase = not looks_cased(tokens)
        found = "no entry has" if lowercase else "entries have"
        notes.append(
            f"{path.name}: {found} upper-case letters, so text is {'lower-cased' if lowercase else 'kept cased'} "
            f"(--lowercase {'false' if lowercase else 'true'} changes that)"
        )
    return TokenizerFiles(
        tokens=tokens,
        special_tokens=dict(ROLES),
        normalization=Normalization(lowercase=lowercase),
        notes=notes,
    )


def _agreeing(files: TokenizerFiles, folder: Path, lowercase: bool | None) -> TokenizerFiles:
    """Return ``files``, unless the user wants another case than they say."""
    found = files.normalization.lowercase
    if lowercase not in (None, found):
        raise ValueError(
            f"--lowercase {str(lowercase).lower()} contradicts {folder}, which says {str(found).lower()}; leave "
            "it out, or give the vocab.txt alone"
        )
    return files


def _from_vocabulary_and_config(folder: Path, config: dict[str, Any]) -> TokenizerFiles:
    normalization = Normalization(
        lowercase=config["do_lower_case"],
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
    )
    return TokenizerFiles(
        tokens=read_vocabulary(folder / "vocab.txt"),
        special_tokens=_special_tokens(config),
        normalization=normalization,
    )


def _from_tokenizer_json(path: Path, config: dict[str, Any]) -> TokenizerFiles:
    data = _read_json(path)
    model = data.get("model") or {}
    _check_part(path, "model", model, "WordPiece")
    _check_part(path, "normalizer", data.get("normalizer"), "BertNormalizer")
    _check_part(path, "pre_tokenizer", data.get("pre_tokenizer"), "BertPreTokenizer")
    vocabulary = dict(model.get("vocab") or {})
    for added in data.get("added_tokens") or []:
        if not added.get("special"):
            raise ValueError(
                f"{path} adds the token {added.get('content')!r} outside its model; only special tokens may be "
                "added: put it into the vocabulary and train again"
            )
        vocabulary.setdefault(added["content"], added["id"])
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"{path}: the ids of its {len(tokens):,} tokens do not run from 0 without gap or repetition")
    special_tokens = _special_tokens(config)
    special_tokens["unk"] = model.get("unk_token", ROLES["unk"])
    if special_tokens["unk"] not in vocabulary:
        raise ValueError(f"{path}: its vocabulary lacks the unknown token {special_tokens['unk']}")
    return TokenizerFiles(
        tokens=tokens,
        special_tokens=special_tokens,
        normalization=_normalization(data["normalizer"]),
        prefix=model.get("continuing_subword_prefix", PREFIX),
        max_word_length=model.get("max_input_chars_per_word", MAX_WORD_LENGTH),
    )


def _check_part(path: Path, part: str, found: Any, wanted: str) -> None:
    kind = found.get("type") if isinstance(found, dict) else None
    if kind != wanted:
        raise ValueError(
            f"{path}: its {part} is {kind or 'missing'}, and only {wanted} is supported so far (WordPiece tokenizers "
            "as BERT has them); train one with `python -m preprocess tokenizer --type wordpiece`"
        )


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return role -> token, from transformers' settings where they say it."""
    special = dict(ROLES)
    for role in ROLES:
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            special[role] = token
    return special


def _normalization(settings: dict[str, Any]) -> Normalization:
    """Take the fields of a Normalization out of a file's settings."""
    return Normalization(
        **{field.name: settings[field.name] for field in fields(Normalization) if field.name in settings}
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data
