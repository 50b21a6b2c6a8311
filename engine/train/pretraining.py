"""From a resolved pretraining configuration to the parts of a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from engine.checkpoint.run_folder import RunFolder
from engine.config.cli import collect
from engine.config.pretrain import PretrainConfig
from engine.convert.configs import model_folder
from engine.convert.huggingface import to_huggingface
from engine.convert.model_folder import write_model_folder
from engine.data.rows import RowReader
from engine.data.source import RowSource
from engine.models.model import Model, build_model
from engine.train.distributed import (
    global_rank,
    init_distributed,
    raise_together,
    wait_for_rank_zero,
    world_size,
)
from engine.train.evaluate import Runner, evaluate
from engine.train.initial import load_initial_weights
from engine.train.metrics import say
from engine.train.resolve import Resolved, resolve, resolved_tree
from engine.train.run import RunParts, run_training
from engine.train.timeline import StepSettings
from engine.train.watchdog import Watchdog
from preprocess.manifest import Manifest
from preprocess.output_folder import CACHE_FOLDER
from preprocess.tokenizer import BERT, LANGUAGE_MODEL


def pretrain(config: PretrainConfig) -> RunFolder:
    """Pretrain; returns the finished run's folder.

    Raises:
        ValueError: all problems of the configuration at once, before any work.
    """
    resolved = resolve(config)
    device = init_distributed()
    with Watchdog(config.train.rank_timeout):
        source, held_out = open_rows(resolved)
    if held_out is None:
        say(f"note: {config.data.shards} holds no held-out documents: nothing is evaluated")
    if config.masking.whole_word and not source.knows_words(resolved.tokenizer.continuation):
        say(
            f"note: masking.whole_word changes nothing: in {config.data.shards} every token is a word of its own; for "
            "Chinese make the shards with --word_segmenter rjieba"
        )
    objective = resolved.objective

    def evaluate_held_out(runner: Runner, step: StepSettings) -> dict[str, float]:
        assert held_out is not None
        rows = held_out.of_length(step.seq_length)
        figures = evaluate(runner, objective, rows, config.train.eval_rows, step.micro_batch_size, device)
        del figures["num_targets"]
        return {f"heldout_{name}": value for name, value in figures.items()}

    return run_training(
        RunParts(
            train=config.train,
            timeline=resolved.timeline,
            settings=resolved.settings,
            arch=resolved.arch,
            seed=config.seed,
            resolved=resolved_tree(resolved),
            defaults=asdict(PretrainConfig(ds_config="").completed()),
            objective=objective,
            source=source,
            build=lambda fresh: initial_model(resolved, fresh),
            export=lambda folder, weights: export(resolved, folder, weights),
            num_samples=source.num_rows(resolved.timeline.at(0).seq_length),
            evaluator=evaluate_held_out if held_out is not None else None,
        )
    )


def open_rows(resolved: Resolved) -> tuple[RowSource, RowSource | None]:
    """Plan the rows; rank 0 goes first, and the others find its plans on disk.

    Raises:
        ValueError: on every rank, if one finds its shards damaged.
    """
    config, objective = resolved.config, resolved.objective

    def open_source(manifest: Manifest) -> RowSource:
        folders = (manifest.folder / CACHE_FOLDER, Path(config.train.output).parent / CACHE_FOLDER)
        readers = {
            length: RowReader(manifest, length, objective.sequence_layout, config.seed, folders)
            for length in resolved.timeline.lengths()
        }
        return RowSource(readers, objective)

    def open_both() -> tuple[RowSource, RowSource | None]:
        return open_source(resolved.manifest), open_source(resolved.held_out) if resolved.held_out else None

    problems: list[str] = []
    opened = collect(problems, open_both) if global_rank() == 0 else None
    wait_for_rank_zero()
    raise_together("\n".join(problems) or None)
    opened = opened or collect(problems, open_both)
    raise_together("\n".join(problems) or None)
    assert opened is not None
    raise_together(_too_few_rows(resolved, opened[0]))
    return opened


def _too_few_rows(resolved: Resolved, source: RowSource) -> str | None:
    """A run on more ranks than there are rows would train on the same rows several times in one step."""
    for length in resolved.timeline.lengths():
        if source.num_rows(length) < world_size():
            return (
                f"data.shards {resolved.config.data.shards} hold {source.num_rows(length)} rows of {length} tokens, "
                f"fewer than the {world_size()} ranks; start fewer ranks, shorten data.seq_length, or give more text"
            )
    return None


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
