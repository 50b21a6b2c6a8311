"""The tokenizer: a vocabulary with special roles, and the pipeline that turns text into its ids."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from preprocess.tokenizer.pipeline import Encoder, IntArray, Pipeline
from preprocess.tokenizer.roles import Vocabulary
from preprocess.tokenizer.saving import BERT, save_tokenizer


class Tokenizer:
    """Text to ids without special tokens, and back.

    A text that looks like a special token ("[MASK]") is text. Not thread-safe. Can be pickled; what encodes is built
    on first use.

    Attributes:
        vocabulary: tokens and special tokens.
        pipeline: how text becomes tokens.
        notes: what was decided while loading, for the user to read.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        special_tokens: Mapping[str, str],
        pipeline: Pipeline,
        *,
        extra_special: Collection[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Put the parts together.

        Args:
            tokens: in id order.
            special_tokens: role (pad, unk, cls, sep, mask, bos, eos) -> token; those not in ``tokens`` are left out.
            extra_special: special tokens without a role.
        """
        self.vocabulary = Vocabulary.build(tokens, special_tokens, extra_special)
        self.pipeline = pipeline
        self.notes = tuple(notes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("vocabulary", "pipeline", "notes")}

    @property
    def type(self) -> str:
        """wordpiece, bpe (byte-level), unigram, sentencepiece_bpe, char, word, or tokenizer_json."""
        return self.pipeline.type

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary in id order."""
        return self.vocabulary.tokens

    @property
    def special_ids(self) -> dict[str, int]:
        """Role (pad, unk, cls, sep, mask, bos, eos) -> id, for the roles that the vocabulary has."""
        return self.vocabulary.special_ids

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return len(self.tokens)

    @property
    def dtype(self) -> np.dtype:
        """Type of the ids: uint16 below 65,536 tokens, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size < 1 << 16 else np.uint32)

    @property
    def prefix(self) -> str:
        """What tokens that continue a word begin with ("##"); "" where they have no prefix."""
        return self.pipeline.prefix

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that ``save`` writes."""
        return self.pipeline.files

    @property
    def keeps_whitespace(self) -> bool:
        """Whether the white space before a sentence is part of its tokens (byte-level BPE), so must be given."""
        return self.pipeline.keeps_whitespace

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides ids, independent of how the files are written."""
        decisive = {
            "type": self.type,
            "tokens": self.tokens,
            "special_ids": self.special_ids,
            **self.pipeline.decisive(),
        }
        if extra := sorted(self.vocabulary.special - set(self.special_ids.values())):
            decisive["extra_special"] = extra
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def continuation(self) -> npt.NDArray[np.bool_]:
        """[vocab_size], True where a token continues a word.

        WordPiece: it has the prefix ("##ing"). Where words begin with a mark ("Ġthe", "▁the"): it has no mark, and
        letters or digits that are not of a script without spaces. Never for characters and words.
        """
        return np.array(self.pipeline.continuation(self.tokens), np.bool_) & ~self.all_special

    @functools.cached_property
    def all_special(self) -> npt.NDArray[np.bool_]:
        """[vocab_size], True for the special tokens."""
        special = np.zeros(self.vocab_size, np.bool_)
        special[list(self.vocabulary.special)] = True
        return special

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder behind ``encode``, for callers that hold large texts."""
        return self.pipeline.encoder(self.vocabulary, self.dtype)

    @functools.cached_property
    def _decoder(self) -> tokenizers.Tokenizer:
        return self.pipeline.backend(self.vocabulary, hidden=False)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return the concatenated ids of the texts and their counts.

        Returns:
            ids [T] uint16 or uint32 (see ``dtype``), without special tokens; counts [len(texts)] int64.
        """
        return self.encoder.encode(texts)

    def encode_with_positions(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids, counts and where each token's first visible character lies.

        Returns:
            ids [T] and counts [len(texts)] as ``encode`` does; positions [T] int64: the index of the code point in
            "\\n".join(texts) at which the first character of the token that is no white space lies, -1 for a token
            that has none, that begins within one, or that continues a WordPiece word.
        """
        return self.encoder.encode_with_positions(texts)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids and where each token begins and ends, as transformers or sentencepiece themselves tell it.

        Returns:
            ids [T], starts [T] and ends [T] int64 in code points of ``text``; the end is exclusive.
        """
        return self.encoder.encode_with_offsets(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, as the pipeline's decoder joins them; the special tokens are written out."""
        return self._decoder.decode([int(token) for token in ids], skip_special_tokens=False)

    def save(self, folder: Path | str, template: str = BERT, max_length: int | None = None) -> None:
        """Write ``files``, the same bytes for the same tokenizer.

        Args:
            folder: made if missing.
            template: key of TEMPLATES: the special tokens that transformers adds beside a model of that kind. Neither
                ``encode`` nor ``digest`` depend on it.
            max_length: tokens that the model beside it takes, to which transformers truncates when asked to.
        """
        save_tokenizer(Path(folder), self.pipeline, self.vocabulary, template, max_length)
