"""Writes a tokenizer's folder so that ``AutoTokenizer`` loads it beside the config of any architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from preprocess.files import write_atomically
from preprocess.tokenizer.pipeline import Pipeline
from preprocess.tokenizer.roles import FALLBACK_ROLES, ROLES, Vocabulary

BERT, LANGUAGE_MODEL, CAUSAL_TEXTS = "bert", "language_model", "causal_texts"
TEMPLATES = {  # what transformers makes of one text and of two: roles, texts $A and $B, and segments where they matter
    BERT: (["cls:0", "$A:0", "sep:0"], ["cls:0", "$A:0", "sep:0", "$B:1", "sep:1"]),
    LANGUAGE_MODEL: (["bos", "$A"], ["bos", "$A", "$B"]),
    CAUSAL_TEXTS: (["$A", "eos"], ["$A", "eos", "$B", "eos"]),
}


def save_tokenizer(
    folder: Path, pipeline: Pipeline, vocabulary: Vocabulary, template: str, max_length: int | None
) -> None:
    """Write the files; see ``Tokenizer.save``."""
    if template not in TEMPLATES:
        raise ValueError(f"there is no template {template!r}; there are: {', '.join(TEMPLATES)}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "tokenizer.json", (full_backend(pipeline, vocabulary, template)).encode())
    config = _config(pipeline, vocabulary, template)
    if max_length is not None:
        config["model_max_length"] = max_length
    text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
    write_atomically(folder / "tokenizer_config.json", text.encode())
    pipeline.write(folder, vocabulary)


def full_backend(pipeline: Pipeline, vocabulary: Vocabulary, template: str) -> str:
    """Return tokenizer.json: the pipeline, its special tokens and those that the template adds."""
    full = pipeline.backend(vocabulary, hidden=False)
    known = {token.content for token in full.get_added_tokens_decoder().values() if token.special}
    full.add_special_tokens([token for token in vocabulary.special_tokens() if token not in known])
    if processor := _post_processor(pipeline, vocabulary, template):
        full.post_processor = processor
    return full.to_str(pretty=True) + "\n"


def _post_processor(pipeline: Pipeline, vocabulary: Vocabulary, template: str) -> processors.PostProcessor | None:
    """Return the template with tokens for roles, without it where the vocabulary lacks one of them."""
    parts: list[processors.PostProcessor] = []
    if pipeline.trimming:
        parts.append(processors.ByteLevel(**pipeline.trimming))
    single, pair = TEMPLATES[template]
    roles = dict.fromkeys(role for item in pair if (role := item.partition(":")[0]) in ROLES)
    if roles.keys() <= vocabulary.special_ids.keys():
        parts.append(_template(single, pair, {role: vocabulary.special_ids[role] for role in roles}, vocabulary))
    return processors.Sequence(parts) if len(parts) > 1 else (parts[0] if parts else None)


def _template(
    single: list[str], pair: list[str], ids: dict[str, int], vocabulary: Vocabulary
) -> processors.TemplateProcessing:
    def filled(items: list[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for name, _, segment in (item.partition(":") for item in items):
            kind, content = ("Sequence", name[1:]) if name.startswith("$") else ("SpecialToken", _token(name))
            found.append({kind: {"id": content, "type_id": int(segment or 0)}})
        return found

    def _token(role: str) -> str:
        return vocabulary.tokens[ids[role]]

    settings = {
        "type": "TemplateProcessing",
        "single": filled(single),
        "pair": filled(pair),
        "special_tokens": {
            _token(role): {"id": _token(role), "ids": [index], "tokens": [_token(role)]} for role, index in ids.items()
        },
    }
    return _read_processor(settings)


def _read_processor(settings: dict[str, Any]) -> Any:
    """Return a post-processor from its JSON: the constructor reads ":" and spaces in tokens as marks of its own."""
    empty = {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "decoder"))
    data: dict[str, Any] = {"version": "1.0", **parts, "added_tokens": [], "post_processor": settings, "model": empty}
    return tokenizers.Tokenizer.from_str(json.dumps(data)).post_processor


def _config(pipeline: Pipeline, vocabulary: Vocabulary, template: str) -> dict[str, object]:
    """Settings for transformers; naming the class makes it right beside the config of any architecture.

    transformers' BertTokenizer puts its own template over that of tokenizer.json, so only the files of a WordPiece for
    BERT, with the settings that it knows, name it. GPT-2 would add the embeddings of token_type_ids to those of the
    tokens, so its files do not list them.
    """
    is_bert = template == BERT
    ids = vocabulary.special_ids
    extra = [vocabulary.tokens[index] for index in sorted(vocabulary.special - set(ids.values()))]
    stands_in = [role for role in ("bos", "eos") if ids.get(role) == ids.get(FALLBACK_ROLES[role])]
    return {
        "tokenizer_class": pipeline.transformers_class if is_bert else Pipeline.transformers_class,
        **pipeline.config(),
        "model_input_names": ["input_ids", *(["token_type_ids"] if is_bert else []), "attention_mask"],
        **{
            f"{role}_token": vocabulary.tokens[index]
            for role, index in ids.items()
            if not is_bert or role not in stands_in
        },
        **({"additional_special_tokens": extra} if extra else {}),
    }
