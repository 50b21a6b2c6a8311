"""Finds out what kind of tokenizer lies at a path, by content, and loads it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from preprocess.tokenizer.base import Tokenizer
from preprocess.tokenizer.bert_pipeline import MAX_WORD_LENGTH, PREFIX, Normalization, WordPiece
from preprocess.tokenizer.byte_bpe import ByteBPE, byte_bpe_data, is_gpt2, read_merges
from preprocess.tokenizer.byte_level import CHARACTER_OF_BYTE
from preprocess.tokenizer.char_word import CHARACTER, WORD, WholeTokens
from preprocess.tokenizer.library import LibraryPipeline
from preprocess.tokenizer.roles import ROLES, Vocabulary, usual_roles
from preprocess.tokenizer.sentencepiece_model import MODEL_FILE, complete_model, is_sentencepiece
from preprocess.tokenizer.vocabulary import looks_cased, read_vocabulary

MODEL_FILES = (MODEL_FILE, "tokenizer.model", "sentencepiece.bpe.model")
RENUMBERED = ("xlm-roberta", "xlmroberta", "camembert", "mbart", "xglm", "barthez", "m2m_100", "plbart")
ACCEPTED = (
    "a folder with tokenizer.json, vocab.txt, vocab.json and merges.txt, or a sentencepiece .model, or such a "
    "tokenizer.json, .model or vocab.txt file"
)


def load_tokenizer(path: Path | str, lowercase: bool | None = None) -> Tokenizer:
    """Load a tokenizer of any kind; what the files hold decides, not their names.

    Args:
        path: a folder (of a model, or as ``Tokenizer.save`` or transformers wrote it) with tokenizer.json, vocab.txt,
            vocab.json and merges.txt, or a sentencepiece model; or one of these files.
        lowercase: for a bare vocabulary, whether text is lower-cased; None decides by its entries: cased if any
            entry that is not a special token has an upper-case letter.

    Raises:
        ValueError: if there is no tokenizer at ``path``, its files are unusable, or say other than ``lowercase``.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no tokenizer at {path}: give {ACCEPTED}; `python -m preprocess tokenizer` trains one")
    tokenizer = _load_file(path, lowercase) if path.is_file() else _load_folder(path, lowercase)
    _check_case(tokenizer, path, lowercase)
    return tokenizer


def _check_case(tokenizer: Tokenizer, path: Path, lowercase: bool | None) -> None:
    if lowercase is None:
        return
    normalization = getattr(tokenizer.pipeline, "normalization", None)
    if normalization is None:
        raise ValueError(
            f"--lowercase {str(lowercase).lower()} is for vocabularies of WordPiece, and {path} is a tokenizer of type "
            f"{tokenizer.type}, whose files say what happens to text; leave it out"
        )
    if normalization.lowercase != lowercase:
        raise ValueError(
            f"--lowercase {str(lowercase).lower()} contradicts {path}, which says "
            f"{str(normalization.lowercase).lower()}; leave it out, or give the vocab.txt alone"
        )


def _load_file(path: Path, lowercase: bool | None) -> Tokenizer:
    with open(path, "rb") as stream:
        start = stream.read(1 << 16)
    if start.startswith(b"\n") and is_sentencepiece(data := path.read_bytes()):
        return _from_sentencepiece(path, data, {})
    if start.lstrip().startswith(b"{"):
        data_of_json = read_json(path)
        if isinstance(data_of_json.get("model"), dict):
            return _from_tokenizer_json(path, data_of_json, _read_settings(path.parent))
        if merges := _merges_beside(path):
            return _from_merges(path, merges, {})
        raise ValueError(f"{path} is JSON without a model: for GPT-2's vocabulary its merges.txt must lie beside it")
    if path.name.endswith("merges.txt") and (vocabulary := _vocabulary_beside(path)):
        return _from_merges(vocabulary, path, {})
    if merges := _merges_beside(path):
        return _from_merges(path, merges, {})
    return _from_vocabulary_file(path, lowercase)


def _load_folder(folder: Path, lowercase: bool | None) -> Tokenizer:
    settings = _read_settings(folder)
    model = _model_file(folder)
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        data = read_json(path)
        if model and (tokenizer := _from_equal_model(model, data, settings)):
            return tokenizer
        return _from_tokenizer_json(path, data, settings)
    for name in ("vocab.json", "vocab.txt"):
        if (folder / "merges.txt").is_file() and (folder / name).is_file():
            return _from_merges(folder / name, folder / "merges.txt", settings)
    if model:
        _check_numbering(folder, model, settings)
        return _from_sentencepiece(model, model.read_bytes(), settings)
    vocabulary = folder / "vocab.txt"
    if vocabulary.is_file() and "do_lower_case" in settings:
        return _from_vocabulary_and_settings(vocabulary, settings)
    if vocabulary.is_file():
        return _load_file(vocabulary, lowercase)
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise ValueError(f"{folder} holds no usable tokenizer (found {found}): needs {ACCEPTED}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ValueError: if the file is something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a JSON {type(data).__name__}, not an object")
    return data


def _read_settings(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, completed by special_tokens_map.json and the model type of config.json."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= {key: value for key, value in read_json(folder / name).items() if value is not None}
    if (folder / "config.json").is_file():
        found["model_type"] = read_json(folder / "config.json").get("model_type")
    return found


def _said_roles(settings: dict[str, Any]) -> dict[str, str]:
    """Return role -> token, where the settings say it."""
    found = {role: _content(settings.get(f"{role}_token")) for role in ROLES}
    return {role: token for role, token in found.items() if token is not None}


def _said_extra(settings: dict[str, Any]) -> list[str]:
    """Return the special tokens without a role that the settings name."""
    found: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        named = settings.get(name) or []
        found += named.values() if isinstance(named, dict) else named
    return [token for token in map(_content, found) if token is not None]


def _content(token: Any) -> str | None:
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _model_file(folder: Path) -> Path | None:
    """Return the sentencepiece model of a folder: one of the usual names, or the only .model that is one."""
    candidates = [folder / name for name in MODEL_FILES if (folder / name).is_file()]
    candidates = candidates or sorted(folder.glob("*.model"))
    found = [path for path in candidates if is_sentencepiece(path.read_bytes())]
    if len(found) > 1 and found[0].name not in MODEL_FILES:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} holds several sentencepiece models ({names}); give one of them")
    return found[0] if found else None


def _check_numbering(folder: Path, model: Path, settings: dict[str, Any]) -> None:
    """Refuse models whose transformers class numbers the pieces differently from the .model."""
    named = f"{settings.get('model_type') or ''} {settings.get('tokenizer_class') or ''}".lower()
    if any(name in named for name in RENUMBERED):
        raise ValueError(
            f"{folder} is of a model ({named.strip()}) that numbers the pieces of {model.name} differently, and only "
            "its tokenizer.json says how: write one with transformers' AutoTokenizer.from_pretrained(folder)"
            f".save_pretrained(folder), or give {model} itself for sentencepiece's own ids"
        )


def _from_sentencepiece(path: Path, data: bytes, settings: dict[str, Any]) -> Tokenizer:
    pipeline, roles, notes = complete_model(data, _said_roles(settings), path)
    extra = [piece.piece for piece in pipeline.proto.pieces if piece.type == 3]  # control symbols
    return Tokenizer(pipeline.pieces, roles, pipeline, extra_special=extra, notes=notes)


def _from_equal_model(model: Path, data: dict[str, Any], settings: dict[str, Any]) -> Tokenizer | None:
    """Return the tokenizer of a .model whose pieces are exactly those of the tokenizer.json beside it."""
    tokenizer = _from_sentencepiece(model, model.read_bytes(), settings)
    vocab = (data.get("model") or {}).get("vocab") or {}
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    for added in data.get("added_tokens") or ():
        ids.setdefault(added["content"], added["id"])
    return tokenizer if ids == {token: index for index, token in enumerate(tokenizer.tokens)} else None


def _from_vocabulary_file(path: Path, lowercase: bool | None) -> Tokenizer:
    tokens = read_vocabulary(path)
    notes = []
    if lowercase is None:
        lowercase = not looks_cased(tokens)
        found = "no entry has" if lowercase else "entries have"
        notes.append(
            f"{path.name}: {found} upper-case letters, so text is {'lower-cased' if lowercase else 'kept cased'} "
            f"(--lowercase {'false' if lowercase else 'true'} changes that)"
        )
    return Tokenizer(tokens, ROLES, WordPiece(Normalization(lowercase=lowercase)), notes=notes)


def _from_vocabulary_and_settings(path: Path, settings: dict[str, Any]) -> Tokenizer:
    roles = ROLES | _said_roles(settings)
    tokens = read_vocabulary(path, roles["unk"])
    kind = settings.get("tokenizer_kind")
    normalization = Normalization(
        lowercase=settings["do_lower_case"],
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    pipeline = WholeTokens(kind, normalization) if kind in (CHARACTER, WORD) else WordPiece(normalization)
    return Tokenizer(tokens, roles, pipeline, extra_special=_said_extra(settings))


def _from_merges(vocabulary: Path, merges_path: Path, settings: dict[str, Any]) -> Tokenizer:
    """Load GPT-2's files: vocab.json, or the same tokens one a line in the order of their ids, and merges.txt."""
    if vocabulary.read_bytes()[: 1 << 12].lstrip().startswith(b"{"):
        vocab = read_json(vocabulary)
    else:
        vocab = {token: index for index, token in enumerate(read_vocabulary(vocabulary, None))}
    merges = read_merges(merges_path)
    missing = [token for pair in merges for token in (*pair, "".join(pair)) if token not in vocab]
    missing += [character for character in CHARACTER_OF_BYTE.values() if character not in vocab]
    if missing:
        raise ValueError(
            f"{merges_path} and {vocabulary} do not belong together: {missing[0]!r} is not in the vocabulary, as are "
            f"{len(missing) - 1:,} more tokens that the merges or single bytes need"
        )
    special = {**usual_roles(vocab), **_said_roles(settings)}
    extra = _said_extra(settings)
    marked = dict.fromkeys(token for token in (*special.values(), *extra) if token in vocab)
    data = byte_bpe_data(vocab, merges, list(marked))
    return _from_tokenizer_json(vocabulary, data, settings)


def _merges_beside(path: Path) -> Path | None:
    """Return merges.txt (or X_merges.txt) beside vocab.json or vocab.txt (or X_vocab.json)."""
    for ending in ("vocab.json", "vocab.txt"):
        if path.name.endswith(ending):
            merges = path.with_name(path.name.removesuffix(ending) + "merges.txt")
            return merges if merges.is_file() else None
    return None


def _vocabulary_beside(merges: Path) -> Path | None:
    stem = merges.name.removesuffix("merges.txt")
    candidates = (merges.with_name(f"{stem}vocab{ending}") for ending in (".json", ".txt"))
    return next((path for path in candidates if path.is_file()), None)


def _from_tokenizer_json(path: Path, data: dict[str, Any], settings: dict[str, Any]) -> Tokenizer:
    pipeline = (ByteBPE if is_gpt2(data) else LibraryPipeline)(data, path)
    vocabulary = pipeline.vocabulary()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError(f"{path}: the ids of its {len(tokens):,} tokens do not run from 0 without gap or repetition")
    marked = pipeline.special_tokens()
    roles = {**usual_roles(marked or tokens), **_said_roles(settings)}
    unknown = pipeline.data["model"].get("unk_token")
    model = pipeline.data["model"]
    if isinstance(model.get("unk_id"), int):
        unknown = model["vocab"][model["unk_id"]][0]
    if unknown:
        roles["unk"] = unknown
    notes = []
    if model.get("dropout"):
        notes.append(f"{path} drops merges at random ({model['dropout']}); here all are applied")
        model["dropout"] = None
    return Tokenizer(
        tokens,
        roles,
        _own_pipeline(pipeline, tokens, roles) or pipeline,
        extra_special=[*marked, *_said_extra(settings)],
        notes=notes,
    )


def _own_pipeline(found: LibraryPipeline, tokens: list[str], roles: dict[str, str]) -> WordPiece | WholeTokens | None:
    """Return BERT's pipeline, or that of characters or words, if a file is exactly that."""
    data = found.data
    normalizer, cutter, model = data["normalizer"] or {}, data["pre_tokenizer"] or {}, data["model"]
    if normalizer.get("type") != "BertNormalizer" or found.added:
        return None
    settings = {field.name: normalizer[field.name] for field in fields(Normalization)}
    normalization = Normalization(**settings)
    if model["type"] == "WordPiece" and cutter.get("type") == "BertPreTokenizer":
        return WordPiece(
            normalization,
            model.get("continuing_subword_prefix", PREFIX),
            model.get("max_input_chars_per_word", MAX_WORD_LENGTH),
        )
    if model["type"] != "WordLevel":
        return None
    vocabulary = Vocabulary.build(tokens[:1], {"unk": tokens[0]})
    for kind in (CHARACTER, WORD):
        pipeline = WholeTokens(kind, normalization)
        if json.loads(pipeline.backend(vocabulary, hidden=False).to_str())["pre_tokenizer"] == cutter:
            return pipeline
    return None
