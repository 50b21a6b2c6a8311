"""Any ``tokenizer.json``: the pipeline as the file says it, run by the ``tokenizers`` library."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from preprocess.tokenizer.byte_level import byte_level_continues, metaspace_continues
from preprocess.tokenizer.pipeline import Encoder, IntArray, Pipeline, batches, flat_ids
from preprocess.tokenizer.roles import HIDDEN, Vocabulary


def offsets_of(backend: tokenizers.Tokenizer, text: str, dtype: np.dtype) -> tuple[np.ndarray, IntArray, IntArray]:
    """Return ids [T] and the code points at which tokens begin and end, as the library tells them."""
    encoding = backend.encode(text, add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return np.array(encoding.ids, dtype), offsets[:, 0], offsets[:, 1]


class LibraryEncoder(Encoder):
    """The library itself."""

    def __init__(self, backend: tokenizers.Tokenizer, dtype: np.dtype) -> None:
        self.backend = backend
        self.dtype = dtype

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, IntArray]:
        """Return ids and counts."""
        ids, counts = [np.zeros(0, self.dtype)], [np.zeros(0, np.int64)]
        for batch in batches(texts):
            encodings = self.backend.encode_batch_fast(list(batch), add_special_tokens=False)
            flat, lengths = flat_ids([encoding.ids for encoding in encodings], self.dtype)
            ids.append(flat)
            counts.append(lengths)
        return np.concatenate(ids), np.concatenate(counts)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, IntArray, IntArray]:
        """Return ids and offsets."""
        return offsets_of(self.backend, text, self.dtype)


class LibraryPipeline(Pipeline):
    """Normalizer, pre-tokenizer, model and decoder of a tokenizer.json, kept as they are.

    Attributes:
        data: the file's content as the library writes it, without truncation, padding and post-processor.
    """

    type = "tokenizer_json"

    def __init__(self, data: dict[str, Any], path: Path | str) -> None:
        """Check that the library can read it.

        Raises:
            ValueError: naming ``path`` if it cannot.
        """
        _check_unknown(data.get("model") or {}, path)
        plain = {**data, "truncation": None, "padding": None, "post_processor": None}
        try:
            read = tokenizers.Tokenizer.from_str(json.dumps(plain))
        except Exception as error:  # the library raises bare Exceptions
            raise ValueError(f"{path}: the tokenizers library cannot read it: {error}") from None
        self.data: dict[str, Any] = json.loads(read.to_str())
        self.trimming = _trimming(data.get("post_processor"))
        self.keeps_whitespace = _keeps_whitespace(read)
        self.prefix = self.data["model"].get("continuing_subword_prefix") or ""
        kept = [added["content"] for added in self.data["added_tokens"] if not added["special"]]
        self.added = tuple(kept)

    def vocabulary(self) -> dict[str, int]:
        """Return token -> id, of the model and of what was added to it."""
        model = self.data["model"]["vocab"]
        ids = dict(model) if isinstance(model, dict) else {piece: index for index, (piece, _) in enumerate(model)}
        for added in self.data["added_tokens"]:
            ids.setdefault(added["content"], added["id"])
        return ids

    def special_tokens(self) -> list[str]:
        """Return the added tokens that the file calls special."""
        return [added["content"] for added in self.data["added_tokens"] if added["special"]]

    def backend(self, vocabulary: Vocabulary, hidden: bool) -> tokenizers.Tokenizer:
        """Return the tokenizer; hidden, special tokens in text are text, in the model too."""
        if not hidden:
            return tokenizers.Tokenizer.from_str(json.dumps(self.data))
        data = {**self.data, "model": dict(self.data["model"])}
        renamed = self._renamed(vocabulary)
        vocab = data["model"]["vocab"]
        if isinstance(vocab, dict):
            data["model"]["vocab"] = {renamed.get(token, token): index for token, index in vocab.items()}
        else:
            data["model"]["vocab"] = [[renamed.get(token, token), score] for token, score in vocab]
        data["added_tokens"] = [
            added for added in self.data["added_tokens"] if not (added["special"] and added["content"] in renamed)
        ]
        backend = tokenizers.Tokenizer.from_str(json.dumps(data))
        backend.encode_special_tokens = True
        if self.trimming:
            backend.post_processor = processors.ByteLevel(**self.trimming)
        return backend

    def _renamed(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Return the special tokens of the model's own vocabulary under names that no text has."""
        model = self.data["model"]
        own = {piece for piece, _ in model["vocab"]} if isinstance(model["vocab"], list) else set(model["vocab"])
        merged = {part for merge in model.get("merges", ()) for part in (*merge, "".join(merge))}
        hidden = (vocabulary.tokens[index] for index in vocabulary.special)
        kept = {vocabulary.unknown, model.get("unk_token")} | merged
        return {token: HIDDEN + token for token in hidden if token in own and token not in kept}

    def encoder(self, vocabulary: Vocabulary, dtype: np.dtype) -> Encoder:
        """Return the library's encoder."""
        return LibraryEncoder(self.backend(vocabulary, hidden=True), dtype)

    def decisive(self) -> dict[str, Any]:
        """Return the file's own settings, without the vocabulary, which the tokens say."""
        model = dict(self.data["model"])
        if isinstance(model["vocab"], dict):
            del model["vocab"]
        added = [copy.copy(added) for added in self.data["added_tokens"] if not added["special"]]
        parts = {name: self.data[name] for name in ("normalizer", "pre_tokenizer")}
        return {**parts, "model": model, "added_tokens": added, "trimming": self.trimming}

    def continuation(self, tokens: Sequence[str]) -> list[bool]:
        """Tell by the model's prefix for continuations, else by the mark that begins words, else none."""
        if self.prefix:
            return [token.startswith(self.prefix) and len(token) > len(self.prefix) for token in tokens]
        if '"ByteLevel"' in json.dumps(self.data["pre_tokenizer"]):
            return [byte_level_continues(token) for token in tokens]
        if any(token.startswith("▁") for token in tokens):
            return [metaspace_continues(token) for token in tokens]
        return super().continuation(tokens)


def _check_unknown(model: dict[str, Any], path: Path | str) -> None:
    """Refuse lists of words or pieces that have no token for anything else: the library fails on such text."""
    unknown = model.get("unk_token")
    if model.get("type") in ("WordPiece", "WordLevel") and unknown not in (model.get("vocab") or ()):
        raise ValueError(f"{path}: its vocabulary lacks the unknown token {unknown}")


def _trimming(post_processor: Any) -> dict[str, bool] | None:
    """Return how a post-processor takes white space out of offsets, which it does without special tokens too."""
    for part in (post_processor or {}).get("processors", [post_processor]):
        if part and part.get("trim_offsets"):
            return {"trim_offsets": True, "add_prefix_space": bool(part.get("add_prefix_space"))}
    return None


def _keeps_whitespace(backend: tokenizers.Tokenizer) -> bool:
    """Whether the white space before a text belongs to its first token."""
    whole, first, bare, spaced = (
        encoding.ids for encoding in backend.encode_batch_fast(["b a", "b", "a", " a"], add_special_tokens=False)
    )
    return whole != first + bare and whole == first + spaced
