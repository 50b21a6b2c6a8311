"""The inference tools as a library: ``from finetune import load``."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.config.decoding import DecodingConfig
from finetune.config.embedding import NeighborsConfig
from finetune.config.tasks import FileConfig
from finetune.inference.encoder import Embedder, Encoder, load_encoder
from finetune.inference.mask_filling import Mask, MaskFiller, load_mask_filler
from finetune.inference.neighbors import Neighbor, neighbors_of, whole_vocabulary
from finetune.inference.prediction import answers, choose_task
from finetune.inference.text_generation import TextGenerator, Written, load_generator
from finetune.model_folder import FinetunedModel, find_model_folder, load_finetuned_model
from finetune.tasks.base import Answer

T = TypeVar("T")


class LoadedModel:
    """A model folder, for prediction, vectors, masked words and text; plain torch on one device, in fp32.

    What a call needs is loaded at the first such call, which raises a ValueError where the folder does not have it.
    """

    def __init__(self, path: str) -> None:
        """Find a model folder, or the newest model of a run folder.

        Raises:
            ValueError: if there is none.
        """
        self.path = path
        self.folder = find_model_folder(path)

    @cached_property
    def finetuned(self) -> FinetunedModel:
        """The model with its task's head."""
        return load_finetuned_model(self.path)

    @cached_property
    def encoder(self) -> Encoder:
        """The model without a head."""
        return load_encoder(self.path)

    @cached_property
    def mask_filler(self) -> MaskFiller:
        """The model with its head of masked language modelling."""
        return load_mask_filler(self.path)

    @cached_property
    def generator(self) -> TextGenerator:
        """The model as one that writes text."""
        return load_generator(self.path)

    def predict(
        self,
        records: Sequence[str | Mapping[str, Any]],
        probabilities: bool = False,
        batch_size: int = 32,
        task_name: str | None = None,
        seed: int = 1,
    ) -> list[Answer]:
        """What ``python -m finetune.predict`` writes, an object for each record.

        Args:
            records: texts, or objects with the keys that the task reads in JSON Lines, such as text_a and text_b.
            probabilities: tell those of all classes too, where the task has classes.
            batch_size: examples per forward pass.
            task_name: of a model that has learned several tasks: which of them.
            seed: of sampled text.

        Raises:
            ValueError: naming the record, counted from 1, that cannot be read.
        """
        model = choose_task(self.finetuned, task_name)
        column = model.task.text_column
        objects = [object_of(record, column, number) for number, record in enumerate(several(records), 1)]
        if not objects:
            return []
        with tempfile.TemporaryDirectory() as folder:  # through the reader of files, whose checks are so the same
            path = Path(folder) / "records.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in objects), encoding="utf-8")
            model.task.key_draws(seed)
            try:
                file = model.task.open(str(path), FileConfig(format="jsonl"), labelled=False)
                read = list(file.records())
                examples = model.task.examples(model.builder, file, read, None)
            except ValueError as error:
                text = str(error).replace(f"{path}, line ", "record ").replace(str(path), "the records")
                raise ValueError(re.sub(r" \(--bad_lines skip [^)]*\)", "", text)) from None
            with torch.inference_mode():
                return answers(model, read, examples, batch_size, probabilities)

    def embed(
        self,
        texts: Sequence[str],
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        normalize: bool | None = None,
        batch_size: int = 32,
    ) -> NDArray[np.float32]:
        """Vectors of texts: [len(texts), D].

        Args:
            texts: any number of them.
            pooling: first, mean, max or last; what the folder says where not given, and mean where it says nothing.
            layers: whose output is taken, averaged: 0 the embeddings, -1 the last layer.
            normalize: divide each vector by its length; what the folder says where not given.
            batch_size: texts per forward pass.
        """
        return Embedder(self.encoder, pooling, layers, normalize, batch_size).encode(several(texts))

    def neighbors(self, word: str, sentence: str | None = None, top: int = 10) -> list[Neighbor]:
        """The words nearest to a word, by the embedding table or in its place in a sentence, the nearest first."""
        config = NeighborsConfig(model=self.path, words=word, sentence=sentence, top=top)
        return neighbors_of(self.encoder, whole_vocabulary(self.encoder, sentence), word, config)

    def fill_mask(self, texts: Sequence[str], top: int = 5, mask: str | None = None) -> list[list[Mask]]:
        """The most probable tokens for each mask of each text; ``mask`` is the tokenizer's own where not given."""
        return self.mask_filler.fill(self.mask_filler.masked(several(texts), mask), top)

    def generate(
        self,
        prompts: Sequence[str],
        decoding: DecodingConfig | None = None,
        num_texts: int = 1,
        batch_size: int = 16,
        seed: int = 1,
    ) -> list[list[Written]]:
        """Texts behind each prompt, the best first; greedily where ``decoding`` is not given."""
        return self.generator.write(several(prompts), decoding, num_texts, batch_size, seed)


def several(given: Sequence[T]) -> Sequence[T]:
    """What was given, which must not be one text or one record alone."""
    if isinstance(given, str | Mapping):
        raise ValueError(f"expected a list, found one {'text' if isinstance(given, str) else 'record'}; put it in [ ]")
    return given


def object_of(record: Any, column: str, number: int) -> dict[str, Any]:
    """A record as the object that stands for it in JSON Lines; a text alone belongs into ``column``."""
    if isinstance(record, str):
        return {column: record}
    if not isinstance(record, Mapping):
        raise ValueError(
            f"record {number}: expected a text, or an object such as {{'text_a': ..., 'text_b': ...}}, found {record!r}"
        )
    return dict(record)
