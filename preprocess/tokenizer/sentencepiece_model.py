"""SentencePiece models: ids and offsets by the library itself, and a ``tokenizer.json`` that gives the same ones.

Where the two differ, sentencepiece is right and ``encode`` follows it. The ``tokenizers`` library normalises grapheme
clusters, so combining marks in combinations that no language has come out differently: of 7,122 lines of random code
points 294 differ, all for that reason. It also takes control symbols and byte pieces ("<0xE4>") that are written out in
text for themselves. A unigram model of others has scores whose sums are rounded in single precision by sentencepiece,
in double by ``tokenizers``, so that equally good cuts of "....." may differ (3 lines of 9,274); models trained here
have scores without that trouble. Of 73,932 lines of real text none differ, for both types.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from preprocess.tokenizer.byte_level import SPACE_MARK, metaspace_continues
from preprocess.tokenizer.pipeline import Encoder, IntArray, Pipeline, batches
from preprocess.tokenizer.roles import Vocabulary, usual_roles

MODEL_FILE = "spiece.model"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # ModelProto.SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
TYPES = {UNIGRAM: "unigram", BPE: "sentencepiece_bpe"}
NEW_TOKENS = {"pad": "<pad>", "cls": "[CLS]", "sep": "[SEP]", "mask": "<mask>"}


class SentencePieceEncoder(Encoder):
    """The library's own processor, single-threaded."""

    def __init__(self, model: bytes, dtype: np.dtype) -> None:
        self.processor = SentencePieceProcessor(model_proto=model)
        self.dtype = dtype

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return ids and counts."""
        rows: list[np.ndarray] = []
        for batch in batches(texts):
            rows += self.processor.Encode(list(batch), return_type="numpy", num_threads=1)
        counts = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.concatenate([np.zeros(0, self.dtype), *rows], dtype=self.dtype, casting="unsafe"), counts

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids and offsets, as sentencepiece tells them: the white space before a word is its token's."""
        found = self.processor.Encode(text, return_type="offset_mapping")
        offsets = np.array(found["offsets"], np.int64).reshape(-1, 2)
        return np.array(found["ids"], self.dtype), offsets[:, 0], offsets[:, 1]


class SentencePieceModel(Pipeline):
    """A unigram or BPE ``.model``."""

    files = (*Pipeline.files, MODEL_FILE)

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.type = TYPES[self.proto.trainer_spec.model_type]
        normalizer = self.proto.normalizer_spec
        self.keeps_whitespace = not (normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "proto"}

    @functools.cached_property
    def proto(self) -> Any:
        """The parsed model (sentencepiece_model_pb2.ModelProto)."""
        return parse_model(self.model)

    @property
    def pieces(self) -> list[str]:
        """The vocabulary in id order."""
        return [piece.piece for piece in self.proto.pieces]

    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return the library's encoder; control symbols never come out of text."""
        return SentencePieceEncoder(self.model, dtype)

    def backend(self, vocabulary: Vocabulary, hidden: bool) -> tokenizers.Tokenizer:
        """Return the same pipeline in the ``tokenizers`` library, for AutoTokenizer and for decoding."""
        return to_tokenizers(self.proto)

    def decisive(self) -> dict[str, Any]:
        """Return the digest of the model."""
        return {"model_sha256": hashlib.sha256(self.model).hexdigest()}

    def continuation(self, tokens: Sequence[str]) -> list[bool]:
        """Tell by the mark that begins words."""
        return [metaspace_continues(token) for token in tokens]

    def classic_files(self, vocabulary: Vocabulary) -> dict[str, bytes]:
        """Return the model."""
        return {MODEL_FILE: self.model}


def is_sentencepiece(data: bytes) -> bool:
    """Whether bytes are a sentencepiece model: its first field is a piece, and the library loads it."""
    if not data.startswith(b"\n"):
        return False
    try:
        SentencePieceProcessor(model_proto=data)
    except RuntimeError:
        return False
    return True


def complete_model(
    data: bytes, said: Mapping[str, str], where: object
) -> tuple[SentencePieceModel, dict[str, str], list[str]]:
    """Return a model that has all that BERT needs, its roles, and what was changed.

    A piece for padding or the mask that is missing is appended, as is one for [CLS] or [SEP] where the model has no
    begin or end of sentence either: the ids of the model stay. Pieces with a role become control symbols, so that no
    text gives their ids.

    Args:
        said: role -> token, where the files beside the model say it.
        where: the model's path, for messages.

    Raises:
        ValueError: if the model is neither unigram nor BPE, or puts the mark of white space behind words.
    """
    proto = parse_model(data)
    spec = proto.trainer_spec
    if spec.model_type not in TYPES:
        raise ValueError(
            f"{where} is a sentencepiece model of words or characters; only unigram and BPE models are supported: "
            "train one with `python -m preprocess tokenizer --type word` or `--type char`"
        )
    if spec.treat_whitespace_as_suffix:
        raise ValueError(f"{where} marks white space behind words (treat_whitespace_as_suffix), which is not supported")
    roles = _roles(proto, said)
    notes = []
    for role, token in NEW_TOKENS.items():
        if role in roles or {"cls": "bos", "sep": "eos"}.get(role) in roles:
            continue
        proto.pieces.add(piece=token, score=0.0, type=CONTROL)
        roles[role] = token
        notes.append(f"{where} has no {role} token: {token} is appended as id {len(proto.pieces) - 1}")
    for piece in proto.pieces:
        if piece.piece in roles.values() and piece.type in (NORMAL, USER_DEFINED):
            piece.type = CONTROL
            notes.append(f"{where}: {piece.piece} has a role, so no text gives its id")
    model = proto.SerializeToString(deterministic=True) if notes else data
    return SentencePieceModel(model), roles, notes


def _roles(proto: Any, said: Mapping[str, str]) -> dict[str, str]:
    pieces = [piece.piece for piece in proto.pieces]
    marked = [piece.piece for piece in proto.pieces if piece.type in (CONTROL, USER_DEFINED)]
    spec = proto.trainer_spec
    own = {
        role: pieces[index]
        for role, index in (("pad", spec.pad_id), ("bos", spec.bos_id), ("eos", spec.eos_id))
        if 0 <= index < len(pieces) and proto.pieces[index].type in (CONTROL, USER_DEFINED)
    }
    unknown = {"unk": _unknown(proto).piece}
    known = set(pieces)
    return {**usual_roles(marked), **own, **{role: token for role, token in said.items() if token in known}, **unknown}


def _unknown(proto: Any) -> Any:
    """Return the piece for what is not in the vocabulary; sentencepiece loads no model without."""
    return next(piece for piece in proto.pieces if piece.type == UNKNOWN)


def parse_model(data: bytes) -> Any:
    """Return the ModelProto in bytes, which must be one."""
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made by protobuf when imported
    proto.ParseFromString(data)
    return proto


def to_tokenizers(proto: Any) -> tokenizers.Tokenizer:
    """Return a ModelProto's pipeline in the ``tokenizers`` library."""
    spec, rules = proto.trainer_spec, proto.normalizer_spec
    unigram = spec.model_type == UNIGRAM
    backend = tokenizers.Tokenizer(_unigram(proto) if unigram else _bpe(proto))
    steps: list[normalizers.Normalizer] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE_MARK))
    if rules.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    backend.normalizer = normalizers.Sequence(steps)
    cuts: list[pre_tokenizers.PreTokenizer] = []
    whole = [] if unigram else sorted(_user_defined(proto), key=lambda piece: (-len(piece), piece))
    if whole:
        cuts.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, whole))), "isolated"))
    if not any(SPACE_MARK in piece.piece[1:] for piece in proto.pieces if piece.type in (NORMAL, USER_DEFINED)):
        cuts.append(pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="never", split=True))
    if cuts:
        backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    backend.decoder = _decoder(spec.byte_fallback, rules.add_dummy_prefix)
    return backend


def _user_defined(proto: Any) -> list[str]:
    return [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]


def _unigram(proto: Any) -> models.Unigram:
    """Scores as sentencepiece has them; those of user-defined symbols follow from their length."""
    best = max((piece.score for piece in proto.pieces if piece.type == NORMAL), default=0.0)
    scores = [
        (piece.piece, len(piece.piece) * best - 0.1 if piece.type == USER_DEFINED else piece.score)
        for piece in proto.pieces
    ]
    unknown = list(proto.pieces).index(_unknown(proto))
    return models.Unigram(scores, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)


def _bpe(proto: Any) -> models.BPE:
    """Every pair of pieces that makes a piece, best score first: sentencepiece merges any of them."""
    vocab = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    normal = {piece.piece for piece in proto.pieces if piece.type == NORMAL}
    ranked = sorted(
        (piece for piece in proto.pieces if piece.type == NORMAL and len(piece.piece) > 1),
        key=lambda piece: (-piece.score, vocab[piece.piece]),
    )
    merges = [
        (piece.piece[:cut], piece.piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in normal and piece.piece[cut:] in normal
    ]
    unknown = _unknown(proto).piece
    return models.BPE(
        vocab,
        merges,
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=bool(_user_defined(proto)),  # no merge makes those
    )


def _decoder(byte_fallback: bool, prefixed: bool) -> decoders.Decoder:
    if not byte_fallback:
        return decoders.Metaspace(SPACE_MARK, prepend_scheme="always" if prefixed else "never")
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefixed else [])])
