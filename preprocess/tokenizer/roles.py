"""Special tokens by role, and the vocabulary that knows them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

ROLES = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "bos": "[BOS]",
    "eos": "[EOS]",
}
USUAL_NAMES = {  # where a tokenizer's files do not say which token has a role
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("[BOS]", "<s>", "<bos>", "<|endoftext|>"),
    "eos": ("[EOS]", "</s>", "<eos>", "<|endoftext|>"),
}
FALLBACK_ROLES = {"bos": "cls", "eos": "sep", "cls": "bos", "sep": "eos"}
HIDDEN = "\0"  # begins the names that special tokens have while text is encoded; corpora with NUL are refused


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in id order, and which are special.

    Attributes:
        special_ids: role -> id; cls and bos stand in for each other, and so do sep and eos.
        special: ids of all special tokens, those without a role included.
    """

    tokens: tuple[str, ...]
    special_ids: dict[str, int]
    special: frozenset[int]

    @classmethod
    def build(cls, tokens: Sequence[str], roles: Mapping[str, str], extra: Collection[str] = ()) -> Vocabulary:
        """Give ids by position; roles and extra special tokens that are not in ``tokens`` are left out."""
        ids = {token: index for index, token in enumerate(tokens)}
        own = {role: ids[roles[role]] for role in ROLES if roles.get(role) in ids}
        found = dict(own)
        for role, fallback in FALLBACK_ROLES.items():
            if role not in own and fallback in own:
                found[role] = own[fallback]
        special = {*found.values(), *(ids[token] for token in extra if token in ids)}
        return cls(tuple(tokens), {role: found[role] for role in ROLES if role in found}, frozenset(special))

    @property
    def unknown(self) -> str | None:
        """The token for what is not in the vocabulary."""
        return self.tokens[self.special_ids["unk"]] if "unk" in self.special_ids else None

    def ids(self, hidden: bool) -> dict[str, int]:
        """Return token -> id; ``hidden`` renames special tokens so that no text gives their ids."""
        return {self.name(index, hidden): index for index in range(len(self.tokens))}

    def name(self, index: int, hidden: bool) -> str:
        """Return a token, renamed if it is special and ``hidden``; the unknown token keeps its name."""
        token = self.tokens[index]
        hide = hidden and index in self.special and index != self.special_ids.get("unk")
        return HIDDEN + token if hide else token

    def special_tokens(self) -> list[str]:
        """Return all special tokens, in id order."""
        return [self.tokens[index] for index in sorted(self.special)]


def usual_roles(present: Iterable[str]) -> dict[str, str]:
    """Return role -> the first of its usual names that is ``present``."""
    known = set(present)
    found = {role: [name for name in names if name in known] for role, names in USUAL_NAMES.items()}
    return {role: names[0] for role, names in found.items() if names}
