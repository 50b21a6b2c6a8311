"""Sentences as JSON objects: tokens or a text, with a label for each or with spans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.readers.sentences import Sentence, are_characters, cut_text, is_ideographic, join_units, labels_of_spans

TOKENS, TEXTS = ("tokens", "words"), ("text", "text_a", "sentence")
LABELS, SPANS = ("labels", "label", "tags", "ner_tags"), ("spans", "entities")
LAYOUT = (
    'a line must be {"tokens": [...], "labels": [...]}, {"text": "...", "labels": [a label for each character or for '
    'each word between white space]}, or {"text": "...", "spans": [{"start": 0, "end": 2, "type": "..."}]}'
)


def sentence_of_object(line: int, text: str, characters: bool | None) -> Sentence:
    """Read one object.

    Args:
        line: its number in the file.
        text: the JSON.
        characters: how a text without a label for each unit is cut; None: into characters where it is ideographic.

    Raises:
        ValueError: saying what is wrong with it.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError(f"no JSON object but {type(content).__name__}; {LAYOUT}")
    tokens, labels, spans = _first_of(content, TOKENS), _first_of(content, LABELS), _first_of(content, SPANS)
    if isinstance(labels, dict):  # CLUENER: {type: {text: [[first, last], ...]}}
        named: dict[str, Any] = labels
        found = [(kind, place) for kind, texts in named.items() for places in texts.values() for place in places]
        labels, spans = None, [{"start": begin, "end": last + 1, "type": kind} for kind, (begin, last) in found]
    known = _strings(labels, "labels") if labels is not None else None
    if tokens is not None:
        units = _strings(tokens, "tokens")
        joined, places = join_units(units, are_characters(units))
    else:
        joined = _first_of(content, TEXTS)
        if not isinstance(joined, str):
            raise ValueError(f"neither tokens nor a text; {LAYOUT}")
        places = _places_in(joined, known, characters)
    if known is None and spans is not None:
        known = list(labels_of_spans(places, [_span_of(span) for span in spans]))
    if known is not None and len(known) != len(places):
        raise ValueError(f"{len(known)} labels for {len(places)} units; {LAYOUT}")
    return Sentence(line, joined, places, None if known is None else tuple(known))


def _first_of(content: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((content[name] for name in names if content.get(name) is not None), None)


def _strings(value: Any, name: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} must be a list of strings; {LAYOUT}")
    return value


def _places_in(text: str, labels: Sequence[str] | None, characters: bool | None) -> tuple[tuple[int, int], ...]:
    """Places of a text's units: as many as labels, where there are labels."""
    if labels is not None:
        if len(labels) == len(text):
            return tuple((place, place + 1) for place in range(len(text)))
        words = text.split()
        if len(labels) != len(words):
            raise ValueError(f"{len(labels)} labels for {len(text)} characters or {len(words)} words; {LAYOUT}")
        places, end = [], 0
        for word in words:
            begin = text.index(word, end)
            end = begin + len(word)
            places.append((begin, end))
        return tuple(places)
    return cut_text(text, is_ideographic(text) if characters is None else characters)


def _span_of(span: Any) -> tuple[int, int, str]:
    """(begin, end, type) of an object or a list of the three."""
    if isinstance(span, dict):
        span = [span.get("start"), span.get("end"), span.get("type", span.get("label"))]
    match span:
        case [int() as begin, int() as end, str() as kind]:
            return begin, end, kind
    raise ValueError(
        f'a span must be {{"start": N, "end": N, "type": "..."}}, end behind its last character, not {span}'
    )
