"""Reads vocabulary files: one token a line."""

from __future__ import annotations

from pathlib import Path

from preprocess.tokenizer.sentencepiece_model import is_sentencepiece

MAX_VOCABULARY_BYTES = 1 << 28
WANTED = "needs a vocabulary: UTF-8 text, one token a line, with {unknown}"


def looks_cased(tokens: list[str]) -> bool:
    """Whether any entry other than "[...]" and "<...>" has an upper-case letter."""
    return any(token != token.lower() for token in tokens if not _is_bracketed(token))


def _is_bracketed(token: str) -> bool:
    return token[:1] + token[-1:] in ("[]", "<>")


def read_vocabulary(path: Path, unknown: str | None = "[UNK]") -> list[str]:
    """Return the entries of a vocabulary file, one token a line, in order.

    Args:
        unknown: the entry that must be there; None for none.

    Raises:
        ValueError: if the file is no such list, has an entry twice, or lacks ``unknown``.
    """
    data = path.read_bytes() if path.stat().st_size <= MAX_VOCABULARY_BYTES else b"\0"
    wanted = WANTED.format(unknown=unknown or "all its tokens")
    if b"\0" in data or data.startswith(b"\n\x0e"):
        raise ValueError(f"{path} is a binary file, no vocabulary; {wanted}{_kind_hint(path, data)}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = _kind_hint(path, data)
        raise ValueError(f"{path} is no vocabulary: byte {error.start} is not UTF-8; {wanted}{hint}") from None
    if text.lstrip()[:1] == "{":
        raise ValueError(f"{path} is JSON, no vocabulary; {wanted}; for a tokenizer.json give the folder that holds it")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    _check_no_piece_list(lines, path)
    _check_entries(lines, path, wanted)
    if unknown is not None and unknown not in lines:
        raise ValueError(f"{path} has no {unknown} entry among {len(lines):,} lines; {wanted}")
    return lines


def _check_no_piece_list(lines: list[str], path: Path) -> None:
    """Refuse the list of pieces and scores that sentencepiece writes beside its model."""
    if len(lines) < 2 or not all(_is_piece_and_score(line) for line in lines[:100]):
        return
    model = path.with_suffix(".model")
    beside = f"give {model}" if model.is_file() else f"give the model that was trained with it ({model.name})"
    raise ValueError(
        f"{path} lists the pieces and scores of a sentencepiece model, which is not enough to cut text; {beside}"
    )


def _is_piece_and_score(line: str) -> bool:
    piece, _, score = line.rpartition("\t")
    try:
        return bool(piece) and float(score) <= 0
    except ValueError:
        return False


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


def _kind_hint(path: Path, data: bytes) -> str:
    if data.startswith(b"\n") and not is_sentencepiece(data):
        return "; if it was a sentencepiece model, it is damaged or cut short: copy it again"
    return ""
