"""The other side of ``finetuning.py``: transformers' own classes in a plain loop, padded to the longest of a batch.

    python -m benchmarks.finetuning_plain --data FOLDER --work FOLDER --model DIR --dataset SST-2 --output F.json

The recipe is that of finetune/run.py: AdamW without decay of biases and norms, 10 % warmup and linear decay, clipping
at 1, the model's own dropout. bf16 is autocast over fp32 weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetuning_data import ENGLISH, Dataset, Question

BATCH, RATE, DECAY, CLIP, WARMUP = 32, 1e-4, 0.01, 1.0, 0.1
IGNORED = -100
DOC_STRIDE, LONGEST_ANSWER, BEST = 64, 30, 20
Features = list[dict[str, Any]]
Measure = Callable[[list[Any]], dict[str, float]]


class Plain:
    """A dataset, tokenized for a class of transformers, and what measures its outputs."""

    def __init__(self, dataset: Dataset, tokenizer: Any, train: list[Any], dev: list[Any]) -> None:
        self.dataset, self.tokenizer = dataset, tokenizer
        self.raw_train, self.raw_dev = train, dev
        prepare = {
            "classification": self._classification,
            "regression": self._regression,
            "token_classification": self._tokens,
            "question_answering": self._questions,
        }[dataset.task]
        self.model_class, self.num_labels, self.train, self.dev, self.measure = prepare()

    def _texts(self, rows: list[Any], label: Callable[[str], Any]) -> Features:
        found = []
        for text, other, target in rows:
            encoded = self.tokenizer(text, other, truncation="longest_first", max_length=self.dataset.max_length)
            found.append({**encoded, "labels": label(target)})
        return found

    def _classification(self) -> tuple[str, int, Features, Features, Measure]:
        from sklearn.metrics import f1_score, matthews_corrcoef

        labels = sorted({row[2] for row in self.raw_train})

        def measure(logits: list[Any]) -> dict[str, float]:
            predicted = [int(row.argmax()) for row in logits]
            right = [feature["labels"] for feature in self.dev]
            return {
                "accuracy": float(np.mean(np.array(predicted) == np.array(right))),
                "macro_f1": float(f1_score(right, predicted, average="macro")),
                "matthews": float(matthews_corrcoef(right, predicted)),
            }

        made = (self._texts(rows, labels.index) for rows in (self.raw_train, self.raw_dev))
        return "AutoModelForSequenceClassification", len(labels), *made, measure

    def _regression(self) -> tuple[str, int, Features, Features, Measure]:
        from scipy.stats import pearsonr, spearmanr

        def measure(logits: list[Any]) -> dict[str, float]:
            values, right = [float(row[0]) for row in logits], [feature["labels"] for feature in self.dev]
            return {"pearson": float(pearsonr(values, right)[0]), "spearman": float(spearmanr(values, right)[0])}

        made = (self._texts(rows, float) for rows in (self.raw_train, self.raw_dev))
        return "AutoModelForSequenceClassification", 1, *made, measure

    def _tokens(self) -> tuple[str, int, Features, Features, Measure]:
        from seqeval.metrics import f1_score

        tags = sorted({tag for _, row in self.raw_train for tag in row})

        def features(rows: list[Any]) -> Features:
            found = []
            for words, row in rows:
                encoded = self.tokenizer(
                    words, is_split_into_words=True, truncation=True, max_length=self.dataset.max_length
                )
                places = encoded.word_ids()
                first = [
                    place is not None and place != before
                    for place, before in zip(places, [None, *places], strict=False)
                ]
                labels = [
                    tags.index(row[p]) if is_first else IGNORED for p, is_first in zip(places, first, strict=True)
                ]
                found.append({**encoded, "labels": labels})
            return found

        def measure(logits: list[Any]) -> dict[str, float]:
            predicted = []
            for scores, feature, (_, row) in zip(logits, self.dev, self.raw_dev, strict=True):
                chosen = [
                    tags[int(s.argmax())] for s, y in zip(scores, feature["labels"], strict=False) if y != IGNORED
                ]
                predicted.append(chosen + ["O"] * (len(row) - len(chosen)))
            return {"f1": float(f1_score([row for _, row in self.raw_dev], predicted))}

        return "AutoModelForTokenClassification", len(tags), features(self.raw_train), features(self.raw_dev), measure

    def _questions(self) -> tuple[str, int, Features, Features, Measure]:
        def measure(logits: list[Any]) -> dict[str, float]:
            return measure_answers(self.raw_dev, self.dev, logits)

        learned = [row for row in self.raw_train if row.start >= 0 or not row.answers]
        made = (self._windows(rows) for rows in (learned, self.raw_dev))
        return "AutoModelForQuestionAnswering", 2, *made, measure

    def _windows(self, rows: list[Question]) -> Features:
        found = []
        for number, row in enumerate(rows):
            encoded = self.tokenizer(
                row.question,
                row.context,
                truncation="only_second",
                max_length=self.dataset.max_length,
                stride=DOC_STRIDE,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for window in range(len(encoded["input_ids"])):
                parts, offsets = encoded.sequence_ids(window), encoded["offset_mapping"][window]
                spans = [offset if part == 1 else None for part, offset in zip(parts, offsets, strict=True)]
                start, end = answer_tokens(row, spans)
                names = ("input_ids", "token_type_ids", "attention_mask")
                inputs = {name: encoded[name][window] for name in names}
                found.append({**inputs, "start": start, "end": end, "record": number, "spans": spans})
        return found


def answer_tokens(row: Question, spans: list[Any]) -> tuple[int, int]:
    """First and last token of the answer in a window, or [CLS] twice where it is not whole there."""
    if row.start < 0:
        return 0, 0
    last = row.start + len(row.answers[0])
    inside = [p for p, span in enumerate(spans) if span and span[0] < last and span[1] > row.start]
    whole = inside and spans[inside[0]][0] <= row.start and spans[inside[-1]][1] >= last
    return (inside[0], inside[-1]) if whole else (0, 0)


def measure_answers(rows: list[Question], features: Features, logits: list[Any]) -> dict[str, float]:
    """Exact match and F1 of SQuAD 2.0's script; an answer is the best span, or none where [CLS] scores higher."""
    best: dict[int, tuple[float, str]] = {}
    none: dict[int, float] = {}
    for feature, scores in zip(features, logits, strict=True):
        start, end, number = scores[:, 0], scores[:, 1], feature["record"]
        none[number] = min(none.get(number, np.inf), float(start[0] + end[0]))
        for i in np.argsort(-start)[:BEST]:
            for j in np.argsort(-end)[:BEST]:
                if i <= j < i + LONGEST_ANSWER and feature["spans"][i] and feature["spans"][j]:
                    text = rows[number].context[feature["spans"][i][0] : feature["spans"][j][1]]
                    best[number] = max(best.get(number, (-np.inf, "")), (float(start[i] + end[j]), text))
    exact = f1 = 0.0
    for number, row in enumerate(rows):
        score, text = best.get(number, (-np.inf, ""))
        given = normalized(text) if score > none[number] else []
        right = [normalized(answer) for answer in row.answers] or [[]]
        exact += max(float(given == answer) for answer in right)
        f1 += max(overlap(given, answer) for answer in right)
    return {"exact_match": exact / len(rows), "f1": f1 / len(rows)}


def normalized(text: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def overlap(given: list[str], right: list[str]) -> float:
    """F1 of two bags of words; of two empty ones 1."""
    common = sum((Counter(given) & Counter(right)).values())
    if not given or not right:
        return float(given == right)
    return 2 * common / (len(given) + len(right))


def batches(features: Features, order: list[int]) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """Padded batches, and the real tokens of each."""
    for first in range(0, len(order), BATCH):
        chosen = [features[number] for number in order[first : first + BATCH]]
        longest = max(len(feature["input_ids"]) for feature in chosen)

        def padded(name: str, value: int, chosen: Features = chosen, longest: int = longest) -> torch.Tensor:
            return torch.tensor([f[name] + [value] * (longest - len(f[name])) for f in chosen])

        batch = {name: padded(name, 0) for name in ("input_ids", "token_type_ids", "attention_mask")}
        if "start" in chosen[0]:
            batch["start_positions"] = torch.tensor([feature["start"] for feature in chosen])
            batch["end_positions"] = torch.tensor([feature["end"] for feature in chosen])
        elif isinstance(chosen[0]["labels"], list):
            batch["labels"] = padded("labels", IGNORED)
        else:
            batch["labels"] = torch.tensor([feature["labels"] for feature in chosen])
        yield batch, int(batch["attention_mask"].sum())


def groups_of(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def rate_of(step: int, steps: int) -> float:
    """Share of the peak rate: a linear warmup, then a linear decay to zero."""
    warmup = max(1, round(WARMUP * steps))
    return (step + 1) / warmup if step < warmup else (steps - step) / max(1, steps - warmup)


def train(plain: Plain, model: Any, seed: int, precision: str, limit: int | None) -> dict[str, float]:
    """Train; returns the real and the padded tokens, and the seconds, of the steps behind the first ten."""
    dataset, generator = plain.dataset, np.random.default_rng(seed)
    steps = limit or dataset.epochs * -(-len(plain.train) // BATCH)
    optimizer = torch.optim.AdamW(groups_of(model), lr=RATE, fused=True)
    model.train()
    step, tokens, padded, seconds = 0, 0, 0, 0.0
    while step < steps:
        for batch, count in batches(plain.train, generator.permutation(len(plain.train)).tolist()):
            begun = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = RATE * rate_of(step, steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step > 10:
                tokens, padded = tokens + count, padded + batch["input_ids"].numel()
                seconds += time.perf_counter() - begun
            if step == steps:
                break
    return {"tokens": tokens, "padded_tokens": padded, "seconds": seconds, "steps": steps}


@torch.no_grad()
def outputs(plain: Plain, model: Any, precision: str) -> list[Any]:
    """Logits of the file to measure on."""
    model.eval()
    found: list[Any] = []
    for batch, _ in batches(plain.dev, list(range(len(plain.dev)))):
        inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            result = model(**inputs)
        if plain.num_labels == 2 and "start_logits" in result:
            found += list(torch.stack([result.start_logits, result.end_logits], -1).float().numpy())
        else:
            found += list(result.logits.float().numpy())
    return found


def main() -> None:
    """Train one dataset with one seed and write what came of it."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "work", "model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--dataset", required=True, choices=[dataset.name for dataset in ENGLISH])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--steps", type=int, help="so many alone, and nothing is measured: for speed")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    dataset = next(dataset for dataset in ENGLISH if dataset.name == given.dataset)
    files = dataset.paths(given.data, given.work)
    assert dataset.read is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    plain = Plain(dataset, tokenizer, *(dataset.read(file) for file in files))
    torch.manual_seed(given.seed)
    model = getattr(transformers, plain.model_class).from_pretrained(given.model, num_labels=plain.num_labels)
    result: dict[str, Any] = train(plain, model, given.seed, given.precision, given.steps)
    if given.steps is None:
        result["figures"] = plain.measure(outputs(plain, model, given.precision))
    result["tokens_per_second"] = result["tokens"] / result["seconds"]
    given.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
