"""Trains unigram and BPE models with sentencepiece, deterministically: one thread, no sampling of its own."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence

from sentencepiece import SentencePieceTrainer

from preprocess.tokenizer.sentencepiece_model import (
    BPE,
    TYPES,
    UNIGRAM,
    SentencePieceModel,
    complete_model,
    parse_model,
)

SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "[CLS]", "[SEP]", "[MASK]")
MAX_PIECE_BYTES = 4000  # sentencepiece drops longer input in silence
SCORE_STEPS = (
    256  # scores are multiples of 1/256: their sums are exact in single precision, so ties are ties everywhere
)
RESERVED = "▅"  # sentencepiece drops text that holds it
MODEL_TYPES = {TYPES[UNIGRAM]: "unigram", TYPES[BPE]: "bpe"}


def train_sentencepiece(
    texts: Iterable[str],
    kind: str,
    vocab_size: int,
    lowercase: bool,
    coverage: float,
    special_tokens: Sequence[str] = (),
) -> tuple[dict[str, str], SentencePieceModel]:
    """Return roles and model.

    The model normalises as sentencepiece does by default (nmt_nfkc: full-width letters and punctuation become ASCII),
    with case folding where ``lowercase``. Extra special tokens have the last ids.

    Raises:
        ValueError: if ``vocab_size`` is too small for the characters of the corpus, or more than the corpus gives.
    """
    written = io.BytesIO()
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=pieces_of(texts),
            model_writer=written,
            model_type=MODEL_TYPES[kind],
            vocab_size=vocab_size - len(special_tokens),
            character_coverage=coverage,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIAL_TOKENS[0],
            control_symbols=list(SPECIAL_TOKENS[4:]),
            num_threads=1,
            input_sentence_size=0,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explained(str(error), kind, vocab_size, len(special_tokens))) from None
    proto = parse_model(written.getvalue())
    for piece in proto.pieces:
        piece.score = round(piece.score * SCORE_STEPS) / SCORE_STEPS
    for token in special_tokens:
        proto.pieces.add(piece=token, score=0.0, type=proto.pieces[0].type)
    pipeline, roles, _ = complete_model(proto.SerializeToString(deterministic=True), {}, "the trained model")
    return roles, pipeline


def pieces_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of the texts, long ones in pieces, cut at white space where there is some."""
    for text in texts:
        for line in text.replace(RESERVED, " ").replace("\0", " ").split("\n"):
            if line and not line.isspace():
                yield from [line] if len(line) * 4 <= MAX_PIECE_BYTES else _cut(line)


def _cut(line: str) -> Iterator[str]:
    limit = MAX_PIECE_BYTES // 4
    while len(line) > limit:
        end = line.rfind(" ", 1, limit)
        end = end if end > 0 else limit
        yield line[:end]
        line = line[end:]
    if not line.isspace():
        yield line


def _explained(message: str, kind: str, vocab_size: int, num_extra: int) -> str:
    """Say in our options' words what sentencepiece complains about."""
    if found := re.search(r"Please set it to a value <= (\d+)", message):
        most = int(found[1]) + num_extra
        return (
            f"vocab_size is {vocab_size}, and the corpus gives {most} tokens of type {kind} at most; ask for {most} or "
            "fewer, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        least = int(found[1]) + num_extra + 1
        return (
            f"vocab_size is {vocab_size}: the special tokens and the characters of the corpus need {least} at least; a "
            "lower --character_coverage leaves rare characters out"
        )
    if "sentences_.empty()" in message:
        return "the corpus has no text that sentencepiece can be trained on; give more text"
    return f"sentencepiece cannot train on this corpus: {message}"
