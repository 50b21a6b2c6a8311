"""What a model of masked language modelling (BERT) expects where a text has a mask."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.config.cli import UsageError, collect
from engine.convert.configs import pad_id_of, read_json
from engine.convert.huggingface import from_huggingface
from engine.convert.model_folder import read_heads, read_model_folder
from engine.data.batch import pack
from engine.data.draws import Draw
from engine.data.order import philox
from engine.models.heads import MaskedLMHead
from engine.models.model import Model
from engine.objectives.base import encode
from finetune.config.generate import FillMaskConfig
from finetune.features.sequences import SequenceBuilder
from finetune.generation.stepping import Ids
from finetune.inference.prediction import chunks
from finetune.inference.texts import Texts, write_answers
from finetune.inference.writing import output_problems
from finetune.metrics.texts import text_of
from finetune.model_folder import KEY, filled_model, find_model_folder, read_architecture
from finetune.tasks.base import Answer
from preprocess.tokenizer import load_tokenizer

CHUNK_TEXTS = 1024


@dataclass(frozen=True)
class Mask:
    """A mask and what may stand there.

    Attributes:
        word: what stood there; None where the text had the mask.
        tokens: the most probable ones, best first.
        probabilities: of these.
    """

    word: str | None
    tokens: list[str]
    probabilities: list[float]


@dataclass(frozen=True)
class MaskedText:
    """A text as tokens with masks.

    Attributes:
        tokens: with special tokens.
        places: of the masks that were not cut off.
        word: what was masked at random, if anything.
        num_cut: masks that were cut off, for the text is too long.
        truncated: whether the text is too long.
    """

    tokens: Ids
    places: list[int]
    word: str | None = None
    num_cut: int = 0
    truncated: bool = False


class MaskFiller:
    """A BERT with its head of masked language modelling, on its device."""

    def __init__(self, model: Model, builder: SequenceBuilder, device: torch.device) -> None:
        self.model, self.builder, self.device = model, builder, device
        self.tokenizer = builder.tokenizer
        ids = self.tokenizer.special_ids
        self._cls, self._sep, self._mask = ids["cls"], ids["sep"], ids["mask"]

    @property
    def mask_token(self) -> str:
        """The tokenizer's own mask, such as [MASK]."""
        return self.tokenizer.tokens[self._mask]

    def masked(self, texts: Sequence[str], mask: str | None = None) -> list[MaskedText]:
        """Tokenize texts; ``mask`` in them becomes a mask, the tokenizer's own where not given."""
        return [self._cut(np.concatenate(self._pieces(text.split(mask or self.mask_token))[1:])) for text in texts]

    def _pieces(self, parts: Sequence[str]) -> list[Ids]:
        """A mask before each part, and the part's tokens."""
        ids, counts = self.tokenizer.encode(parts)
        mask = np.array([self._mask], ids.dtype)
        return [piece for part in np.split(ids, np.cumsum(counts)[:-1]) for piece in (mask, part)]

    def with_random_words(self, texts: Sequence[str], seed: int = 1, first_number: int = 0) -> list[MaskedText]:
        """Mask one word of each text, drawn by the seed and the text's number; all tokens of the word.

        A text without a word has no mask.
        """
        ids, counts = self.tokenizer.encode(texts)
        found = []
        for number, tokens in enumerate(np.split(ids, np.cumsum(counts)[:-1]), first_number):
            found.append(self._with_random_word(tokens, philox(seed, number, 0, Draw.WORDS).random_raw()))
        return found

    def _with_random_word(self, tokens: Ids, draw: int) -> MaskedText:
        kept = tokens[: self.builder.max_length - 2]
        starts = np.flatnonzero(~self.tokenizer.continuation[kept]).tolist()
        if not starts:
            return self._cut(tokens)
        words = list(zip(starts, [*starts[1:], len(kept)], strict=True))
        real = [(first, last) for first, last in words if self._is_word(kept[first:last])]
        first, last = (real or words)[int(draw) % len(real or words)]  # punctuation where there is nothing else
        masked = tokens.copy()
        masked[first:last] = self._mask
        return self._cut(masked, text_of(self.tokenizer, tokens[first:last]))

    def _is_word(self, tokens: Ids) -> bool:
        """Whether tokens have a letter or a digit, and none stands for what is not in the vocabulary."""
        known = not self.tokenizer.all_special[tokens].any()
        return known and any(map(str.isalnum, text_of(self.tokenizer, tokens)))

    def _cut(self, tokens: Ids, word: str | None = None) -> MaskedText:
        kept = tokens[: self.builder.max_length - 2]
        whole = np.concatenate([[self._cls], kept, [self._sep]]).astype(np.int64)
        places = np.flatnonzero(whole == self._mask).tolist()
        num_cut = int((tokens[len(kept) :] == self._mask).sum())
        return MaskedText(whole, places, word, num_cut, len(kept) < len(tokens))

    @torch.inference_mode()
    def fill(self, texts: Sequence[MaskedText], top_n: int = 5, batch_size: int = 32) -> list[list[Mask]]:
        """The most probable tokens for each mask of each text."""
        order = [number for number, text in enumerate(texts) if text.places]
        order.sort(key=lambda number: len(texts[number].tokens))
        found: list[list[Mask]] = [[] for _ in texts]
        for numbers in chunks(order, batch_size):
            for number, masks in zip(numbers, self._fill([texts[number] for number in numbers], top_n), strict=True):
                found[number] = masks
        return found

    def _fill(self, texts: Sequence[MaskedText], top_n: int) -> Iterator[list[Mask]]:
        batch = pack([text.tokens for text in texts])
        starts = batch.layout.cu_seqlens[:-1].tolist()
        places = [start + place for start, text in zip(starts, texts, strict=True) for place in text.places]
        hidden = encode(self.model, batch.to(self.device))[torch.tensor(places, device=self.device)]
        logits = self.model.heads["mlm"](hidden, self.model.word_embedding)  # [M, Vp]
        size = self.tokenizer.vocab_size
        best = logits[:, :size].float().softmax(-1).topk(min(top_n, size))
        rows = iter(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        for text in texts:
            masks = []
            for _ in text.places:
                ids, shares = next(rows)
                masks.append(Mask(text.word, [self.tokenizer.tokens[token] for token in ids], shares))
            yield masks


def load_mask_filler(path: str) -> MaskFiller:
    """Load a model that predicts masked tokens onto the GPU, where there is one.

    Args:
        path: model folder or run folder: of a pretraining, or of any fine-tuning that left the head in place.

    Raises:
        ValueError: if it has no such head, or its tokenizer no mask.
    """
    folder = find_model_folder(path)
    arch = read_architecture(folder)
    kind = (read_json(folder / "config.json").get(KEY) or {}).get("task")
    if arch.causal or kind in ("lm", "seq2seq"):
        what = (
            "is a GPT-2, which sees nothing behind a mask" if arch.causal else f"learned {kind}, to write next tokens"
        )
        raise ValueError(
            f"--model {folder} {what}; give a BERT from pretraining, or let finetune.generate write text with this one"
        )
    config, tensors = read_model_folder(folder)
    weights = from_huggingface(tensors, arch, pad_id_of(config)) | read_heads(folder)
    if "heads.mlm.bias" not in weights:
        after = f", for it learned {kind}" if kind else ""
        raise ValueError(
            f"--model {folder} has no head that predicts masked tokens{after}; give a BERT from pretraining"
        )
    builder = SequenceBuilder(load_tokenizer(folder), arch, arch.max_positions)
    if "mask" not in builder.tokenizer.special_ids:
        raise ValueError(f"--model {folder}: its tokenizer has no mask token")
    model = filled_model(folder, arch, {"mlm": MaskedLMHead(arch)}, weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return MaskFiller(model.to(device).eval(), builder, device)


def fill_file(config: FillMaskConfig) -> None:
    """Write what may stand at the masks of a file's texts, or of one text.

    Raises:
        ValueError: all problems of the settings at once, or a line of the input that cannot be read.
    """
    problems = config.problems() + output_problems(config.output, config.input)
    filler = collect(problems, lambda: load_mask_filler(config.model))
    given = not config.file_problems("text", config.text)
    texts = collect(problems, lambda: Texts(config, config.text)) if given else None
    if problems or filler is None or texts is None:
        raise UsageError("\n".join(problems))
    report = _Report()
    columns = _columns(config)
    count = write_answers(config, texts, columns, lambda lines: _answers(filler, config, lines, report), "fill_mask")
    notes = [f"{report.without:,} texts without a mask"] * bool(report.without)
    notes += [f"{report.cut:,} masks beyond the model's {filler.builder.max_length} tokens"] * bool(report.cut)
    if config.output:
        notes.insert(0, f"{config.output}: {count:,} masks of {report.texts:,} texts")
    if notes:
        print("; ".join(notes), file=sys.stderr)
    for told in texts.notes():
        print(f"note: {told}", file=sys.stderr)


@dataclass
class _Report:
    """Counts of texts, of those without a mask, and of masks that were cut off."""

    texts: int = 0
    without: int = 0
    cut: int = 0


def _columns(config: FillMaskConfig) -> list[str]:
    best = [f"{name}_{number}" for number in range(1, config.top_n + 1) for name in ("token", "probability")]
    return ["text", "mask", *(["word"] if config.random_word else []), *best]


def _answers(filler: MaskFiller, config: FillMaskConfig, lines: Iterator[str], report: _Report) -> Iterator[Answer]:
    """A line for each mask: the numbers of the text and of the mask in it, from 1, and the most probable tokens."""
    for chunk in chunks(lines, CHUNK_TEXTS):
        if config.random_word:
            texts = filler.with_random_words(chunk, config.seed, report.texts)
        else:
            texts = filler.masked(chunk, config.mask)
        found = filler.fill(texts, config.top_n, config.batch_size)
        for number, (text, masks) in enumerate(zip(texts, found, strict=True), report.texts + 1):
            report.without += not text.places and not text.num_cut
            report.cut += text.num_cut
            for place, mask in enumerate(masks, 1):
                answer: Answer = {"text": number, "mask": place}
                if config.random_word:
                    answer["word"] = mask.word
                for rank, (token, share) in enumerate(zip(mask.tokens, mask.probabilities, strict=True), 1):
                    answer |= {f"token_{rank}": token, f"probability_{rank}": share}
                yield answer
        report.texts += len(chunk)
