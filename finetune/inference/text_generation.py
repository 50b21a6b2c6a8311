"""From a model folder and prompts to texts."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch

from engine.config.cli import UsageError, collect
from engine.convert.configs import pad_id_of, read_json
from engine.convert.huggingface import from_huggingface
from engine.convert.model_folder import read_model_folder
from finetune.config.decoding import DecodingConfig
from finetune.config.generate import GenerateConfig
from finetune.config.tasks import LmConfig
from finetune.features.sequences import SequenceBuilder
from finetune.generation.decoding import Generated, generate
from finetune.generation.prompts import PromptBuilder, PromptLayout
from finetune.inference.prediction import chunks
from finetune.inference.texts import Texts, write_answers
from finetune.inference.writing import output_problems
from finetune.metrics.texts import text_of
from finetune.model_folder import (
    KEY,
    FinetunedModel,
    filled_model,
    find_model_folder,
    load_finetuned_model,
    read_architecture,
)
from finetune.tasks.base import Answer
from finetune.tasks.generation import PROMPT, Generation, LanguageModel
from preprocess.tokenizer import load_tokenizer

CHUNK_TEXTS = 1024


@dataclass(frozen=True)
class Written:
    """A text behind a prompt.

    Attributes:
        text: without special tokens at its end.
        score: of a beam search, else None.
        truncated: whether the prompt was cut.
    """

    text: str
    score: float | None
    truncated: bool


class TextGenerator:
    """A model that continues prompts, or writes texts for sources, on its device."""

    def __init__(self, loaded: FinetunedModel) -> None:
        assert isinstance(loaded.task, Generation)
        self.model, self.task, self.builder = loaded.model, loaded.task, loaded.builder
        self.generator = self.task.generator(self.model, self.builder.tokenizer)
        layout = self.task.prompt_layout(self.builder.arch.causal)
        self._prompts = PromptBuilder(self.builder, layout)

    def write(
        self,
        prompts: Sequence[str],
        decoding: DecodingConfig | None = None,
        num_texts: int = 1,
        batch_size: int = 16,
        seed: int = 1,
        first_number: int = 0,
    ) -> list[list[Written]]:
        """Texts for each prompt, the best first.

        Args:
            prompts: any number of texts.
            decoding: how tokens are chosen; greedily where not given.
            num_texts: for each prompt: the best beams, or so many samples.
            batch_size: prompts that are continued at once; like lengths share a batch.
            seed: of the samples.
            first_number: number of the first prompt; the draws for a prompt depend on its number.

        Raises:
            ValueError: if a prompt has no token and nothing is put before it, or the settings do not fit together.
        """
        decoding = decoding or DecodingConfig()
        if problems := decoding.problems() + decoding.num_texts_problems(num_texts):
            raise ValueError("\n".join(problems))
        made = self._prompts.alone(prompts, decoding.max_new_tokens)
        for number, continued in enumerate(made):
            if not len(continued.sequence.tokens):
                raise ValueError(
                    f"prompt {first_number + number + 1:,} ({prompts[number]!r}) has no token; with this model a text "
                    "cannot begin with nothing"
                )
        order = sorted(range(len(made)), key=lambda number: len(made[number].sequence.tokens))
        found: list[list[Written]] = [[] for _ in made]
        for numbers in chunks(order, batch_size):
            rows = [made[number].sequence.tokens for number in numbers]
            keys = [(seed, first_number + number) for number in numbers]
            for number, texts in zip(numbers, generate(self.generator, rows, decoding, num_texts, keys), strict=True):
                found[number] = [self._written(text, made[number].truncated) for text in texts]
        return found

    def _written(self, generated: Generated, truncated: bool) -> Written:
        return Written(text_of(self.builder.tokenizer, generated.tokens), generated.score, truncated)


def load_generator(path: str) -> TextGenerator:
    """Load a model that generates text onto the GPU, where there is one.

    A model of the task lm or seq2seq does what it learned. Any other GPT-2 continues texts, which begin with the tokens
    that transformers' tokenizer of the folder puts before a text.

    Args:
        path: model folder or run folder.

    Raises:
        ValueError: if it is no such model, or its parts do not fit together.
    """
    folder = find_model_folder(path)
    kind = (read_json(folder / "config.json").get(KEY) or {}).get("task")
    if kind in ("lm", "seq2seq"):
        return TextGenerator(load_finetuned_model(path))
    arch = read_architecture(folder)
    if not arch.causal:
        raise ValueError(
            f"--model {folder} is a BERT that {'learned ' + kind if kind else 'fills masks'}, and does not generate "
            "text; fine-tune it with --task seq2seq or --task lm, or give a GPT-2"
        )
    config, tensors = read_model_folder(folder)
    task = PretrainedLanguageModel(begins_with_bos(folder))
    weights = from_huggingface(tensors, arch, pad_id_of(config))
    model = filled_model(folder, arch, task.make_heads(arch), weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(load_tokenizer(folder), arch, arch.max_positions)
    return TextGenerator(FinetunedModel(model.to(device).eval(), task, builder, device))


class PretrainedLanguageModel(LanguageModel):
    """A GPT-2 as its pretraining left it."""

    def __init__(self, with_bos: bool) -> None:
        super().__init__(LmConfig(), (PROMPT,))
        self.with_bos = with_bos

    def prompt_layout(self, causal: bool) -> PromptLayout:
        """What the folder's tokenizer puts before a text."""
        return PromptLayout(("bos",) if self.with_bos else (), (), keeps_end=True)


def begins_with_bos(folder: Path) -> bool:
    """Whether transformers' tokenizer of a folder puts a special token before a text."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return False
    library: Any = tokenizers.Tokenizer.from_file(str(path))
    with_special = library.encode("a").ids
    without = library.encode("a", add_special_tokens=False).ids
    return len(with_special) > len(without) and with_special[0] != without[0]


def generate_file(config: GenerateConfig) -> None:
    """Write texts for the prompts of a file, or print those of one prompt.

    Raises:
        ValueError: all problems of the settings at once, or a line of the input that cannot be read.
    """
    problems = config.problems() + output_problems(config.output, config.input)
    generator = collect(problems, lambda: load_generator(config.model))
    texts = (
        None
        if config.file_problems("prompt", config.prompt)
        else collect(problems, lambda: Texts(config, config.prompt))
    )
    if problems or generator is None or texts is None:
        raise UsageError("\n".join(problems))
    cut = 0

    def answers(prompts: Iterator[str]) -> Iterator[Answer]:
        """A line for each prompt, chunk by chunk, and the count of those that were cut."""
        nonlocal cut
        first = 0
        for chunk in chunks(prompts, CHUNK_TEXTS):
            found = generator.write(chunk, config.decoding, config.num_texts, config.batch_size, config.seed, first)
            cut += sum(written[0].truncated for written in found)
            first += len(chunk)
            yield from (_answer(written, generator.task.target_column, config.scores) for written in found)

    columns = list(_answer([Written("", 0.0, False)] * config.num_texts, generator.task.target_column, config.scores))
    if config.output is None:
        for answer in answers(texts.read()):
            print("\n".join("\t".join(str(answer[name]) for name in pair) for pair in _pairs(columns, config.scores)))
        return
    count = write_answers(config, texts, columns, answers, "generate")
    note = f" ({cut:,} of the prompts cut)" if cut else ""
    print(f"{config.output}: texts for {count:,} prompts{note}", file=sys.stderr)
    for told in texts.notes():
        print(f"note: {told}", file=sys.stderr)


def _answer(written: Sequence[Written], column: str, scores: bool) -> Answer:
    """``completion`` and, where there are several, ``completion_2`` and so on, each with its score where asked for."""
    answer: Answer = {}
    for number, text in enumerate(written, 1):
        end = "" if number == 1 else f"_{number}"
        answer[column + end] = text.text
        if scores:
            answer[f"score{end}"] = text.score
    return answer


def _pairs(columns: Sequence[str], scores: bool) -> Iterator[Sequence[str]]:
    """The columns of each text, its score first."""
    step = 2 if scores else 1
    for first in range(0, len(columns), step):
        yield columns[first : first + step][::-1]
