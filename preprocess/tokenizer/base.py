"""The tokenizer: loaded from a file or folder, encoding fast, saved so that ``AutoTokenizer`` reads it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import processors

from preprocess.files import write_atomically
from preprocess.tokenizer.bert_pipeline import MAX_WORD_LENGTH, PREFIX, Normalization, build_backend
from preprocess.tokenizer.vocabulary import ROLES, read_tokenizer_files
from preprocess.tokenizer.wordpiece import WordPieceEncoder
from preprocess.tokenizer.wordpiece_training import train_vocabulary

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
FALLBACK_ROLES = {"bos": "cls", "eos": "sep"}
BERT, LANGUAGE_MODEL, CAUSAL_TEXTS = "bert", "language_model", "causal_texts"
TEMPLATES = {  # what transformers makes of one text and of two: roles, texts $A and $B, and segments where they matter
    BERT: (["cls:0", "$A:0", "sep:0"], ["cls:0", "$A:0", "sep:0", "$B:1", "sep:1"]),
    LANGUAGE_MODEL: (["bos", "$A"], ["bos", "$A", "$B"]),
    CAUSAL_TEXTS: (["$A", "eos"], ["$A", "eos", "$B", "eos"]),
}


class Tokenizer:
    """A WordPiece tokenizer: text to ids without special tokens, and back.

    A text that looks like a special token ("[MASK]") is text. Not thread-safe.

    Attributes:
        type: "wordpiece".
        tokens: the vocabulary in id order.
        special_ids: role (pad, unk, cls, sep, mask, bos, eos) -> id, for the roles that the vocabulary has.
        notes: what was decided while loading, for the user to read.
    """

    type = "wordpiece"

    def __init__(
        self,
        tokens: Sequence[str],
        special_tokens: Mapping[str, str],
        normalization: Normalization,
        *,
        prefix: str = PREFIX,
        max_word_length: int = MAX_WORD_LENGTH,
        notes: Sequence[str] = (),
    ) -> None:
        self.tokens = tuple(tokens)
        self.normalization = normalization
        self.prefix = prefix
        self.max_word_length = max_word_length
        self.notes = tuple(notes)
        ids = {token: index for index, token in enumerate(self.tokens)}
        self.special_ids = {role: ids[special_tokens[role]] for role in ROLES if special_tokens.get(role) in ids}
        for role, fallback in FALLBACK_ROLES.items():
            if role not in self.special_ids and fallback in self.special_ids:
                self.special_ids[role] = self.special_ids[fallback]
        self._backend = self._build_backend()
        self._encoder = WordPieceEncoder(self._backend, self.dtype)

    def _build_backend(self) -> tokenizers.Tokenizer:
        ids = {token: index for index, token in enumerate(self.tokens)}
        unknown = self.tokens[self.special_ids["unk"]]
        return build_backend(ids, unknown, self.normalization, self.prefix, self.max_word_length)

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id is below it."""
        return len(self.tokens)

    @property
    def dtype(self) -> np.dtype:
        """Type of the ids: uint16 below 65,536 tokens, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size < 1 << 16 else np.uint32)

    @functools.cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything that decides ids, independent of how the files are written."""
        decisive = {
            "type": self.type,
            "tokens": self.tokens,
            "special_ids": self.special_ids,
            "normalization": asdict(self.normalization),
            "prefix": self.prefix,
            "max_word_length": self.max_word_length,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def continuation(self) -> npt.NDArray[np.bool_]:
        """[vocab_size], True where a token continues a word ("##ing")."""
        special = self.all_special
        flags = [token.startswith(self.prefix) and len(token) > len(self.prefix) for token in self.tokens]
        return np.array(flags) & ~special

    @functools.cached_property
    def all_special(self) -> npt.NDArray[np.bool_]:
        """[vocab_size], True for the special tokens."""
        special = np.zeros(self.vocab_size, np.bool_)
        special[list(self.special_ids.values())] = True
        return special

    @property
    def encoder(self) -> WordPieceEncoder:
        """The encoder behind ``encode``, for callers that hold large texts."""
        return self._encoder

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, npt.NDArray[np.int64]]:
        """Return the concatenated ids of the texts and their counts.

        Returns:
            ids [T] uint16 or uint32 (see ``dtype``), without special tokens; counts [len(texts)] int64.
        """
        return self._encoder.encode(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; words are joined by spaces, and the special tokens are written out."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=False)

    def save(self, folder: Path | str, template: str = BERT) -> None:
        """Write tokenizer.json, tokenizer_config.json and vocab.txt, the same bytes for the same tokenizer.

        Args:
            folder: made if missing.
            template: key of TEMPLATES: the special tokens that transformers adds beside a model of that kind. Neither
                ``encode`` nor ``digest`` depend on it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        full = self._build_backend()
        full.add_special_tokens(sorted({self.tokens[index] for index in self.special_ids.values()}))
        if processor := self._post_processor(template):
            full.post_processor = processor
        write_atomically(folder / "tokenizer.json", (full.to_str(pretty=True) + "\n").encode())
        config = json.dumps(self._config(template), ensure_ascii=False, indent=2) + "\n"
        write_atomically(folder / "tokenizer_config.json", config.encode())
        write_atomically(folder / "vocab.txt", "".join(f"{token}\n" for token in self.tokens).encode())

    def _post_processor(self, template: str) -> processors.TemplateProcessing | None:
        """Return the template with tokens for roles; None where the vocabulary lacks one of them."""
        single, pair = TEMPLATES[template]
        roles = dict.fromkeys(role for item in pair if (role := item.partition(":")[0]) in ROLES)
        if not roles.keys() <= self.special_ids.keys():
            return None
        tokens = {role: self.tokens[self.special_ids[role]] for role in roles}

        def filled(items: list[str]) -> list[str]:
            parts = (item.partition(":") for item in items)
            return [f"{tokens.get(name, name)}{colon}{segment}" for name, colon, segment in parts]

        return processors.TemplateProcessing(
            single=filled(single),
            pair=filled(pair),
            special_tokens=[(token, self.special_ids[role]) for role, token in tokens.items()],
        )

    def _config(self, template: str) -> dict[str, object]:
        """Settings for transformers; naming the class makes it right beside the config of any architecture.

        transformers' BertTokenizer puts its own template over that of tokenizer.json, so only BERT's files name it.
        GPT-2 would add the embeddings of token_type_ids to those of the tokens, so its files do not list them.
        """
        is_bert = template == BERT
        own = {role: index for role, index in self.special_ids.items() if not is_bert or self._is_own_role(role)}
        return {
            "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast",
            "do_lower_case": self.normalization.lowercase,
            "strip_accents": self.normalization.strip_accents,
            "tokenize_chinese_chars": self.normalization.handle_chinese_chars,
            "model_input_names": ["input_ids", *(["token_type_ids"] if is_bert else []), "attention_mask"],
            **{f"{role}_token": self.tokens[index] for role, index in own.items()},
        }

    def _is_own_role(self, role: str) -> bool:
        return self.special_ids[role] != self.special_ids.get(FALLBACK_ROLES.get(role, ""))


def load_tokenizer(path: Path | str, lowercase: bool | None = None) -> Tokenizer:
    """Load a WordPiece tokenizer.

    Args:
        path: a folder with tokenizer.json, or with vocab.txt; or a vocabulary file (one token a line).
        lowercase: for a bare vocabulary, whether text is lower-cased; None decides by its entries: cased if any
            entry that is not a special token has an upper-case letter.

    Raises:
        ValueError: if there is no tokenizer at ``path``, it is of another kind, or its vocabulary is unusable.
    """
    files = read_tokenizer_files(Path(path), lowercase)
    return Tokenizer(
        files.tokens,
        files.special_tokens,
        files.normalization,
        prefix=files.prefix,
        max_word_length=files.max_word_length,
        notes=files.notes,
    )


def train_wordpiece(texts: Iterable[str], vocab_size: int, lowercase: bool = True, min_frequency: int = 2) -> Tokenizer:
    """Train a WordPiece vocabulary; the same texts give the same vocabulary, on any machine.

    Args:
        texts: lines of any length; read twice, so a generator is kept in memory.
        vocab_size: number of tokens wanted, special tokens included; a small corpus may give fewer.
        lowercase: whether text is lower-cased and stripped of accents.
        min_frequency: how often a character or a pair must occur to be taken in.

    Raises:
        ValueError: if ``vocab_size`` leaves no room beside the special tokens, or the texts hold no word.
    """
    normalization = Normalization(lowercase=lowercase)
    return Tokenizer(train_vocabulary(texts, vocab_size, normalization, min_frequency), ROLES, normalization)
