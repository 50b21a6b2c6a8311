"""Continuing prompts (lm), and writing a text for a text (seq2seq)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch, Targets
from engine.models.attention import Attention
from engine.models.heads import CausalLMHead, MaskedLMHead
from engine.models.model import Model
from engine.objectives.base import LossTerm, encode, token_term
from finetune.config.tasks import LmConfig, Seq2seqConfig
from finetune.features.sequences import SequenceBuilder
from finetune.generation.decoding import generate
from finetune.generation.prompts import PromptBuilder, PromptLayout
from finetune.generation.stepping import Generator
from finetune.metrics.texts import bleu, lowercases, rouge, text_of
from finetune.readers.tables import Row, Table
from finetune.tasks.base import Answer, Example, RecordFile
from finetune.tasks.table_task import TableTask
from preprocess.tokenizer import BERT, CAUSAL_TEXTS, LANGUAGE_MODEL, Tokenizer

PROMPT, COMPLETION = "prompt", "completion"
SOURCE, TARGET = "source", "target"


class Continuation(NamedTuple):
    """What is needed to write the text of an example, and to measure it."""

    tokenizer: Tokenizer
    reference: str | None
    line: int = 0  # of its record in the file, which keys the draws


class Output(NamedTuple):
    """What a model makes of an example.

    Attributes:
        text: that was generated; None where none was.
        loss: sum over the tokens of the right text; 0 where it is not known.
        correct: how many of them are the most probable, given those before.
        num_tokens: how many they are.
    """

    text: str | None
    loss: float = 0.0
    correct: int = 0
    num_tokens: int = 0


class Generation(TableTask):
    """A text for each record, token by token behind a prompt; the loss is that of the text alone.

    A causal model (GPT-2) sees what is before a token. Where ``prefix_masked``, the tokens of the prompt see each other
    too (Dong et al. 2019, arXiv:1905.03197): so a BERT can learn to write.
    """

    pretrained_heads = ("lm", "mlm")
    config_class: ClassVar[type[Any]]

    def __init__(self, config: Any, columns: tuple[str, ...]) -> None:
        """Take the settings of the kind, and name the columns of the prompt, one or none."""
        self.name, self.config, self.columns = self.kind, config, columns
        self.main_figure = "bleu" if config.generate else "accuracy"

    @classmethod
    def for_training(cls, file: RecordFile[Row], records: Sequence[Row], config: Any) -> Self:
        """The columns of the training file decide whether there are prompts."""
        assert isinstance(file, Table)
        return cls(config, tuple(name for name in cls.prompt_columns() if name in file.names))

    @classmethod
    def prompt_columns(cls) -> tuple[str, ...]:
        """Columns of the prompt that a file may have."""
        return tuple(name for name in cls.known_columns if name != cls.target_column)

    @classmethod
    def from_settings(cls, labels: Sequence[str], settings: Mapping[str, Any]) -> Self:
        """The task that a model was trained for."""
        known = {field.name for field in fields(cls.config_class)}
        config = cls.config_class(**{name: value for name, value in settings.items() if name in known})
        return cls(config, tuple(settings["columns"]))

    def settings(self) -> dict[str, Any]:
        """How text is generated, and the columns of the prompt."""
        return {**asdict(self.config), "columns": list(self.columns)}

    # -- what the two kinds differ in

    @abstractmethod
    def masks_prefix(self, causal: bool) -> bool:
        """Whether the tokens of a prompt see each other, in a causal model or in another."""

    @abstractmethod
    def prompt_layout(self, causal: bool) -> PromptLayout:
        """The special tokens round a prompt."""

    # -- features

    def targets(self, file: RecordFile[Row], records: Sequence[Row]) -> list[str]:
        """The texts to be written.

        Raises:
            ValueError: naming file and line of an empty one.
        """
        assert isinstance(file, Table)
        column = file.column(self.target_column)
        for row in records:
            if not row.cells[column].strip():
                raise ValueError(f"{file.path}, line {row.line:,}: the {self.target_column} is empty")
        return [row.cells[column] for row in records]

    def examples(
        self, builder: SequenceBuilder, file: RecordFile[Row], records: Sequence[Row], targets: Sequence[Any] | None
    ) -> list[Example]:
        """One sequence for each line: the prompt, and the text behind it where it is known."""
        assert isinstance(file, Table)
        texts = [" ".join(row.cells[file.column(name)] for name in self.columns) for row in records]
        return self.examples_of(builder, texts, targets, [row.line for row in records])

    def examples_of(
        self,
        builder: SequenceBuilder,
        prompts: Sequence[str],
        answers: Sequence[str] | None,
        lines: Sequence[int] | None = None,
    ) -> list[Example]:
        """One example for each prompt, with its answer where they are known, and its line in a file of prompts."""
        lines = range(len(prompts)) if lines is None else lines
        made = PromptBuilder(builder, self.prompt_layout(builder.arch.causal))
        if answers is None:
            found = made.alone(prompts, self.config.max_new_tokens)
        else:
            found = made.with_answers(prompts, answers)
        return [
            Example(
                (one.sequence,),
                None if one.labels is None else one.labels.astype(np.int64),
                number,
                one.truncated,
                Continuation(builder.tokenizer, None if answers is None else answers[number], lines[number]),
            )
            for number, one in enumerate(found)
        ]

    def collate(self, builder: SequenceBuilder, examples: Sequence[Example]) -> PackedBatch:
        """Pack examples, masked by their prompts where that is the model's way."""
        batch = super().collate(builder, examples)
        if not self.masks_prefix(builder.arch.causal):
            return batch
        prefixes = torch.tensor([example.sequences[0].second for example in examples], dtype=torch.int32)
        return replace(batch, layout=replace(batch.layout, prefix_lengths=prefixes))

    def with_targets(self, batch: PackedBatch, examples: Sequence[Example]) -> PackedBatch:
        """The batch with the tokens that follow each prompt: [M]."""
        starts = batch.layout.cu_seqlens[:-1].tolist()
        labels = [np.asarray(example.target) for example in examples]
        places = [
            start + example.sequences[0].second - 1 + np.arange(len(tokens))
            for start, example, tokens in zip(starts, examples, labels, strict=True)
        ]
        target = Targets(torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(labels)))
        return replace(batch, targets={self.name: target}, counts={self.name: len(target.labels)})

    # -- model

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """The head of language modelling (GPT-2), or of masked language modelling (BERT)."""
        return CausalLMHead(arch) if arch.causal else MaskedLMHead(arch)

    def make_heads(self, arch: ArchConfig) -> dict[str, nn.Module]:
        """The head that pretraining leaves, by its name."""
        return {"lm" if arch.causal else "mlm": self.make_head(arch)}

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """Those of transformers' GPT2LMHeadModel and ForMaskedLM."""
        return ("lm",) if arch.causal else ("mlm",)

    def losses(self, model: Model, batch: PackedBatch, with_accuracy: bool = False) -> dict[str, LossTerm]:
        """Cross-entropy of the tokens that follow the prompts."""
        hidden = encode(model, batch)
        return {self.name: token_term(model, self.name, hidden, batch, with_accuracy, head_of(model))}

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """Losses where the right texts are known, and texts where they are not or are to be measured."""
        examples = examples[: len(batch.layout.lengths)]
        known = self.name in batch.targets
        texts = self.write(model, examples) if self.config.generate or not known else [None] * len(examples)
        if not known:
            return [Output(text) for text in texts]
        target = batch.targets[self.name]
        logits = model.heads[head_of(model)](encode(model, batch)[target.index], model.word_embedding)  # [M, Vp]
        losses = F.cross_entropy(logits.float(), target.labels, reduction="none").tolist()
        right = (logits.argmax(-1) == target.labels).tolist()
        found, first = [], 0
        for text, example in zip(texts, examples, strict=True):
            last = first + len(np.asarray(example.target))
            found.append(Output(text, math.fsum(losses[first:last]), sum(right[first:last]), last - first))
            first = last
        return found

    def write(self, model: Model, examples: Sequence[Example]) -> list[str]:
        """The text behind each example's prompt; all ranks must call it."""
        tokenizer = examples[0].details.tokenizer
        prompts = [sequence.tokens[: sequence.second] for sequence in (example.sequences[0] for example in examples)]
        keys = [(self.seed, example.details.line) for example in examples]
        written = generate(self.generator(model, tokenizer), prompts, self.config, keys=keys)
        return [text_of(tokenizer, texts[0].tokens) for texts in written]

    def generator(self, model: Model, tokenizer: Tokenizer) -> Generator:
        """How a model of this task continues texts."""
        embeddings = model.encoder.embeddings
        return Generator(
            model,
            head_of(model),
            tokenizer.special_ids["eos"],
            embeddings.position.num_embeddings,
            prefix_masked=self.masks_prefix(is_causal(model)),
            has_segments=embeddings.segment is not None and embeddings.segment.num_embeddings >= 2,
            penalises_prompt=self.kind == "lm",
        )

    # -- results

    def figures(self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row]) -> dict[str, float]:
        """Mean loss of a token, perplexity, the share of tokens predicted right; BLEU and ROUGE where texts are."""
        count = max(1, sum(output.num_tokens for output in outputs))
        loss = math.fsum(output.loss for output in outputs) / count
        found = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": sum(output.correct for output in outputs) / count,
        }
        if not outputs or outputs[0].text is None:
            return found
        texts = [output.text for output in outputs]
        references = [example.details.reference for example in examples]
        lowercase = lowercases(examples[0].details.tokenizer)
        return {**found, "bleu": bleu(texts, references, lowercase), **rouge(texts, references)}

    def answer_columns(self, probabilities: bool) -> list[str]:
        """The column that a training file has the text in."""
        return [self.target_column]

    def answers(
        self, outputs: Sequence[Any], examples: Sequence[Example], records: Sequence[Row], probabilities: bool
    ) -> list[Answer]:
        """The text of each record."""
        return [{self.target_column: output.text} for output in outputs]


class LanguageModel(Generation):
    """Continuing prompts: <bos> prompt completion <eos> (GPT-2), [CLS] prompt completion [SEP] by prefix (BERT)."""

    kind = "lm"
    config_class = LmConfig
    target_column = COMPLETION
    training_columns = (COMPLETION,)
    known_columns = (PROMPT, COMPLETION)
    text_column = PROMPT

    def masks_prefix(self, causal: bool) -> bool:
        """A causal model keeps its own mask."""
        return not causal

    def prompt_layout(self, causal: bool) -> PromptLayout:
        """The completion goes on where the prompt ends; of a long prompt its end is kept."""
        return PromptLayout(("bos",) if causal else ("cls",), (), keeps_end=True)

    def tokenizer_template(self, arch: ArchConfig) -> str:
        """That of a language model, which makes prompts of texts."""
        return LANGUAGE_MODEL if arch.causal else BERT


class Seq2seq(Generation):
    """Writing a text for a text: [CLS] source [SEP] target [SEP] (BERT), source <eos> target <eos> (GPT-2)."""

    kind = "seq2seq"
    config_class = Seq2seqConfig
    target_column = TARGET
    training_columns = (SOURCE, TARGET)
    known_columns = (SOURCE, TARGET)
    text_column = SOURCE

    def masks_prefix(self, causal: bool) -> bool:
        """The tokens of the source see each other in any model."""
        return True

    def prompt_layout(self, causal: bool) -> PromptLayout:
        """A token ends the source; of a long source its beginning is kept."""
        return PromptLayout(() if causal else ("cls",), ("eos",) if causal else ("sep",), keeps_end=False)

    def tokenizer_template(self, arch: ArchConfig) -> str:
        """That which makes sources of texts."""
        return CAUSAL_TEXTS if arch.causal else BERT


def head_of(model: Model) -> str:
    """The head of a model that predicts tokens: lm or mlm."""
    return "lm" if is_causal(model) else "mlm"


def is_causal(model: Model) -> bool:
    """Whether a token of a model sees only what is before it."""
    return next(module.causal for module in model.encoder.modules() if isinstance(module, Attention))
