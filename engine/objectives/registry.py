"""Objectives by name."""

from __future__ import annotations

from collections.abc import Callable

from engine.config.arch import ArchConfig
from engine.config.pretrain import PretrainConfig
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.lm import CausalLM
from engine.objectives.mlm import MaskedLM
from engine.objectives.pairs import PairedMaskedLM


def build_objective(
    name: str, config: PretrainConfig, arch: ArchConfig, vocabulary: Vocabulary
) -> PretrainingObjective:
    """The objective of a run.

    Raises:
        ValueError: if the vocabulary lacks a token that it needs, or the architecture cannot learn it.
    """
    if arch.causal != CAUSAL[name]:
        need = "causal" if CAUSAL[name] else "bidirectional"
        raise ValueError(
            f"objective {name} needs a {need} model, and arch.causal is {arch.causal}; "
            f"choose --objective {next(other for other in CAUSAL if CAUSAL[other] == arch.causal)}, or another --model"
        )
    objective = OBJECTIVES[name](config, vocabulary)
    if objective.sequence_layout.pairs and arch.num_segments < 2:
        raise ValueError(
            f"objective {name} needs segments 0 and 1, and arch.num_segments is {arch.num_segments}; "
            "set --arch.num_segments 2, or another objective"
        )
    return objective


def _paired(pair: str) -> Callable[[PretrainConfig, Vocabulary], PretrainingObjective]:
    return lambda config, vocabulary: PairedMaskedLM(
        pair, config.masking, vocabulary, config.seed, config.data.short_seq_prob
    )


OBJECTIVES: dict[str, Callable[[PretrainConfig, Vocabulary], PretrainingObjective]] = {
    "mlm": lambda config, vocabulary: MaskedLM(config.masking, vocabulary, config.seed),
    "mlm,nsp": _paired("nsp"),
    "mlm,sop": _paired("sop"),
    "lm": lambda config, vocabulary: CausalLM(vocabulary),
}
CAUSAL = {"mlm": False, "mlm,nsp": False, "mlm,sop": False, "lm": True}
