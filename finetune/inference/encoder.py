"""The encoder of any model folder, and vectors of texts and tokens by it; plain torch on one device, in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from engine.convert.configs import pad_id_of
from engine.convert.huggingface import from_huggingface
from engine.convert.model_folder import read_model_folder
from engine.data.batch import PackedBatch
from engine.models.model import Model
from engine.models.pooling import pool
from engine.models.transformer import Transformer
from engine.objectives.base import encode
from finetune.features.sequences import SequenceBuilder, TokenSequence
from finetune.model_folder import KEY, find_model_folder, read_architecture
from finetune.sentence_folder import SentenceSettings, read_sentence_settings
from preprocess.tokenizer import load_tokenizer

Float32 = NDArray[np.float32]
LAST = (-1,)

# N tokens in the packed batch, S sequences, D hidden_size, L layers


@dataclass(frozen=True)
class Encoder:
    """An encoder, ready to be run: in evaluation mode, in fp32, on its device.

    Attributes:
        model: without heads.
        builder: makes token sequences.
        settings: how the folder makes the vector of a text; the mean of all tokens where it does not say.
        device: where the model is.
    """

    model: Model
    builder: SequenceBuilder
    settings: SentenceSettings
    device: torch.device

    @property
    def table(self) -> Float32:
        """The embedding table without padding rows, [vocab_size, D]."""
        table: Float32 = self.model.word_embedding[: self.builder.tokenizer.vocab_size].detach().cpu().numpy()
        return table


@torch.no_grad()
def load_encoder(path: str, max_length: int | None = None) -> Encoder:
    """Load the encoder of a folder, pretrained, fine-tuned or of sentence-transformers, onto the GPU if there is one.

    Args:
        path: model folder or run folder.
        max_length: tokens of a text; what the folder says where not given, and as many as the model takes where it
            says nothing.

    Raises:
        ValueError: if it is no model folder, or its parts do not fit together.
    """
    folder = find_model_folder(path)
    arch = read_architecture(folder)
    config, tensors = read_model_folder(folder)
    weights = from_huggingface(tensors, arch, pad_id_of(config))
    model = Model(Transformer(arch), {})
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    length = (config.get(KEY) or {}).get("max_length")
    settings = read_sentence_settings(folder) or SentenceSettings(max_length=length)
    if max_length is None:
        max_length = min(settings.max_length or arch.max_positions, arch.max_positions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    builder = SequenceBuilder(load_tokenizer(folder), arch, max_length)
    return Encoder(model.to(device).eval(), builder, settings, device)


def layer_numbers(layers: Sequence[int], num_layers: int) -> list[int]:
    """Numbers of layers from 0, the embeddings, to ``num_layers``; negative ones count from the end.

    Raises:
        ValueError: if one does not exist, or none is given.
    """
    if not layers:
        raise ValueError("layers is empty; name at least one, such as -1, the last")
    if wrong := [layer for layer in layers if not -num_layers - 1 <= layer <= num_layers]:
        raise ValueError(
            f"layers: {wrong[0]} does not exist; the model has the layers 1 to {num_layers}, and 0, its embeddings "
            f"(or -1, the last, down to -{num_layers + 1})"
        )
    return sorted({layer % (num_layers + 1) for layer in layers})


def hidden_states(model: Model, batch: PackedBatch, layers: Sequence[int] = LAST) -> Tensor:
    """The mean of the outputs of some layers, [N, D]; a final norm belongs to the last one, as in transformers."""
    stack = [model.encoder.embeddings, *model.encoder.layers]
    wanted = layer_numbers(layers, len(stack) - 1)
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[Any, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.update({number: output})

    handles = [stack[number].register_forward_hook(keep(number)) for number in wanted[:-1]]
    if wanted[-1] != len(stack) - 1:
        handles.append(stack[wanted[-1]].register_forward_hook(keep(wanted[-1])))
    try:
        last = encode(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found = [*outputs.values(), *([last] if wanted[-1] == len(stack) - 1 else [])]
    return torch.stack(found).mean(0) if len(found) > 1 else found[0]


@dataclass(frozen=True)
class Embedder:
    """Vectors of texts.

    Attributes:
        encoder: of the model.
        pooling: how the vectors of tokens become that of a text; the folder's where None.
        layers: whose output is taken, averaged.
        normalize: whether vectors are divided by their length; the folder's for texts, and False for tokens, where
            None.
        batch_size: texts per forward pass.
    """

    encoder: Encoder
    pooling: str | None = None
    layers: Sequence[int] = LAST
    normalize: bool | None = None
    batch_size: int = 32

    def encode(self, texts: Sequence[str]) -> Float32:
        """Vectors of texts in their order: [len(texts), D]."""
        sequences, _ = self.encoder.builder.build(texts)
        return self.sentence_vectors(sequences)

    def sentence_vectors(self, sequences: Sequence[TokenSequence]) -> Float32:
        """Vectors of token sequences in their order: [S, D]."""
        normalize = self.encoder.settings.normalize if self.normalize is None else self.normalize
        result = np.empty((len(sequences), self.encoder.table.shape[1]), np.float32)
        for indices, hidden, batch in self.batches(sequences):
            vectors = pool(hidden, batch.layout, self.pooling or self.encoder.settings.pooling)
            result[indices] = (F.normalize(vectors, dim=-1) if normalize else vectors).cpu().numpy()
        return result

    def token_vectors(self, sequences: Sequence[TokenSequence]) -> list[Float32]:
        """Vectors of the tokens of each sequence, special tokens included: [its length, D] each."""
        result: list[Any] = [None] * len(sequences)
        for indices, hidden, batch in self.batches(sequences):
            vectors = F.normalize(hidden, dim=-1) if self.normalize else hidden
            for index, part in zip(indices, vectors.cpu().split(batch.layout.lengths), strict=True):
                result[index] = part.numpy()
        return result

    def batches(self, sequences: Sequence[TokenSequence]) -> Iterator[tuple[list[int], Tensor, PackedBatch]]:
        """Numbers of some sequences, their hidden states [N, D] and their batch; like lengths share one."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].tokens))
        for first in range(0, len(order), self.batch_size):
            indices = order[first : first + self.batch_size]
            batch = self.encoder.builder.pack([sequences[index] for index in indices]).to(self.encoder.device)
            with torch.inference_mode():
                yield indices, hidden_states(self.encoder.model, batch, self.layers), batch
