"""From a resolved pretraining configuration to the parts of a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.run_folder import RunFolder
from engine.config.pretrain import PretrainConfig
from engine.convert.configs import model_folder
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.downstream.plan import read_plan
from engine.models.model import Model, build_model
from engine.objectives.base import perplexity_of
from engine.train.distributed import from_rank_zero, global_rank, init_distributed
from engine.train.evaluate import Runner, evaluate
from engine.train.initial import load_initial_weights
from engine.train.metrics import say
from engine.train.model_card import DataPart
from engine.train.opened_rows import OpenedRows, open_rows
from engine.train.resolve import Resolved, default_tree, resolve, resolved_tree
from engine.train.run import RunParts, run_training
from engine.train.timeline import StepSettings
from engine.train.watchdog import Watchdog
from preprocess.tokenizer import BERT, LANGUAGE_MODEL


def pretrain(config: PretrainConfig) -> RunFolder:
    """Pretrain; returns the finished run's folder.

    Raises:
        ValueError: all problems of the configuration at once, before any work.
    """
    resolved = resolve(config)
    file = config.train.evaluate_with
    plan = read_plan(file) if file is not None else None
    device = init_distributed(config.backend)
    with Watchdog(config.train.rank_timeout):
        if plan is not None:
            from_rank_zero(plan.refuse_absent_files)
        rows = open_rows(resolved)
    for note in rows.notes(resolved):
        say(f"note: {note}")
    evaluator = partial(_evaluate_held_out, rows, resolved, device) if rows.held_out else None
    return run_training(
        RunParts(
            train=config.train,
            timeline=resolved.timeline,
            settings=resolved.settings,
            arch=resolved.arch,
            seed=config.seed,
            resolved=resolved_tree(resolved),
            defaults=default_tree(),
            objective=resolved.objective,
            source=rows.training,
            build=lambda fresh: initial_model(resolved, fresh),
            export=lambda folder, weights: export(resolved, folder, weights),
            num_samples=rows.training.num_rows(resolved.timeline.at(0).seq_length),
            data=data_parts(resolved),
            profile=config.profile,
            downstream=plan if global_rank() == 0 else None,
            evaluator=evaluator,
            progress=partial(rows.progress, resolved.timeline),
        )
    )


def _evaluate_held_out(
    rows: OpenedRows, resolved: Resolved, device: torch.device, runner: Runner, step: StepSettings
) -> dict[str, float]:
    """Figures of the held-out rows: of a mixture the mean by the sources' weights, and ``loss/SOURCE`` of each."""
    config, found = resolved.config, {}
    for name, source in rows.held_out.items():  # in the same order on all ranks
        held_out = source.of_length(step.seq_length)
        figures = evaluate(runner, resolved.objective, held_out, config.train.eval_rows, step.micro_batch_size, device)
        del figures["num_targets"]
        found[name] = figures
    weights = {source.name: source.weight for source in resolved.sources if source.name in found}
    means = {
        f"heldout_{figure}": sum(weights[name] * found[name][figure] for name in found) / sum(weights.values())
        for figure in next(iter(found.values()))
    }
    term = resolved.objective.name.split(",")[0]
    whole = means.get(f"heldout_loss_{term}", means["heldout_loss"])
    means |= {f"heldout_{name}": value for name, value in perplexity_of({term: whole}).items()}  # no mean of them
    if len(resolved.sources) == 1:
        return means
    return means | {f"heldout_{figure}/{name}": value for name, one in found.items() for figure, value in one.items()}


def data_parts(resolved: Resolved) -> list[DataPart]:
    """What the run reads, for the model card: each folder, and in it each source of its shards."""
    parts = []
    for source in resolved.sources:
        folder = source.manifest.folder.resolve().name
        counts = {name: source.manifest.counts[name] for name in ("documents", "tokens")}
        share = source.weight if len(resolved.sources) > 1 else None
        parts.append(DataPart(folder, source.manifest.digest, counts, share))
        for text in source.manifest.sources:
            counts = {"documents": text.num_documents, "tokens": text.num_tokens}
            parts.append(DataPart(f"{folder}: {Path(text.name).name}", counts=counts))
    return parts


def initial_model(resolved: Resolved, fresh: bool) -> Model:
    """The model with its first weights; those of ``init_from`` where the run begins with them."""
    objective = resolved.objective
    model = build_model(resolved.arch, objective.make_heads(resolved.arch), resolved.config.seed)
    if fresh and resolved.config.init_from:
        load_initial_weights(model, resolved.arch, model_folder(resolved.config.init_from))
    return model


def export(resolved: Resolved, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as a Hugging Face folder; its tokenizer adds the special tokens of the model's sequences."""
    heads = resolved.objective.name.split(",")
    config, tensors = to_huggingface(weights, resolved.arch, heads, resolved.tokenizer.special_ids)
    template = LANGUAGE_MODEL if resolved.arch.causal else BERT
    resolved.tokenizer.save(folder, template, resolved.arch.max_positions)
    write_model_folder(folder, config, tensors)
