"""The head and the losses of sentence vectors.

For two texts: cosine and softmax of SBERT (Reimers and Gurevych 2019, arXiv:1908.10084, section 3), and the contrast
with the other pairs of a batch (Henderson et al. 2017, arXiv:1705.00652, section 4.4; with a temperature and dropout as
the only difference of two texts: Gao et al. 2021, arXiv:2104.08821, section 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from engine.config.arch import ArchConfig
from engine.models.layers import Linear
from engine.models.layout import PackedLayout
from engine.models.pooling import pool
from kernels.cross_entropy import IGNORE_INDEX

# N tokens in the packed batch, S sequences, P pairs, D hidden_size, C classes


class SentenceHead(nn.Module):
    """Vectors of texts, and the class of a pair where there are classes."""

    def __init__(self, arch: ArchConfig, pooling: str, normalize: bool, num_labels: int = 0) -> None:
        super().__init__()
        self.pooling, self.normalize = pooling, normalize
        self.classifier = Linear(3 * arch.hidden_size, num_labels) if num_labels else None

    def forward(self, hidden: Tensor, layout: PackedLayout) -> Tensor:
        """Vectors of sequences: [N, D] to [S, D], same dtype; of length 1 where ``normalize``."""
        vectors = pool(hidden, layout, self.pooling)
        return F.normalize(vectors.float(), dim=-1).to(vectors.dtype) if self.normalize else vectors

    def classify(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits of pairs of vectors: [P, D], [P, D] to [P, C]."""
        assert self.classifier is not None
        return self.classifier(torch.cat([first, second, (first - second).abs()], -1))


def cosine_losses(cosines: Tensor, scores: Tensor) -> Tensor:
    """(cosine - score)^2 of pairs: [P] fp32, [P] to [P]; 0 where the score is IGNORE_INDEX."""
    return torch.where(scores == IGNORE_INDEX, 0.0, (cosines - scores).square())


def contrastive_losses(first: Tensor, second: Tensor, ignored: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each first text's own second text among those of the batch.

    Args:
        first: [P, D], any floating dtype.
        second: [P, D].
        ignored: [P] bool, filler: such pairs have no loss, and their second texts are no choices.
        temperature: that cosines are divided by.

    Returns:
        [P] fp32, the losses; [P] bool, whether the own one is the nearest.
    """
    cosines = F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).T  # [P, P]
    logits = (cosines / temperature).masked_fill(ignored, -torch.inf)
    own = torch.arange(len(first), device=first.device).masked_fill(ignored, IGNORE_INDEX)
    losses = F.cross_entropy(logits, own, reduction="none", ignore_index=IGNORE_INDEX)
    return losses, (logits.argmax(-1) == own)
