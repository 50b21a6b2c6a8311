"""What tasks share that answer with numbers for each sequence: pooling, head and export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.data.batch import PackedBatch
from engine.models.heads import SequenceClassificationHead, usual_pooling
from engine.models.model import Model
from engine.objectives.base import encode
from finetune.readers.columns import TEXT_A, TEXT_B
from finetune.tasks.base import Example
from finetune.tasks.table_task import TableTask


class SequenceTask(TableTask):
    """A task on tables whose head gives ``num_outputs`` numbers for each sequence of one text or of two.

    Attributes:
        num_outputs: numbers for each sequence.
        pooling: of the token that a sequence is read from, or of all: first, last, mean or max; None: first for BERT,
            last where causal.
    """

    num_outputs: int
    pooling: str | None

    def __init__(self, pair: bool, pooling: str | None) -> None:
        self.name = self.kind
        self.columns = (TEXT_A, TEXT_B) if pair else (TEXT_A,)
        self.pooling = pooling

    def settings(self) -> dict[str, Any]:
        """Whether two texts make an example, and the pooling where it is not the usual one."""
        return {"pair": TEXT_B in self.columns, **({"pooling": self.pooling} if self.pooling else {})}

    def make_head(self, arch: ArchConfig) -> nn.Module:
        """A pooler and a classifier (BERT), or a classifier alone (GPT-2)."""
        return SequenceClassificationHead(arch, self.num_outputs, self.pooling)

    def exported_heads(self, arch: ArchConfig) -> tuple[str, ...]:
        """That of transformers' ForSequenceClassification, which has the usual pooling only."""
        usual = self.name == self.kind and self.pooling in (None, usual_pooling(arch))
        return (self.kind,) if usual else ()

    def logits(self, model: Model, batch: PackedBatch) -> Tensor:
        """The head's numbers for each sequence: [S, num_outputs]."""
        logits: Tensor = model.heads[self.name](encode(model, batch), batch.layout)
        return logits

    def outputs(self, model: Model, batch: PackedBatch, examples: Sequence[Example]) -> list[Any]:
        """The head's numbers for each example: [num_outputs] float64."""
        return list(self.logits(model, batch)[: len(examples)].double().cpu().numpy())
