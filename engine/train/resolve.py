"""Find and check all that a pretraining configuration names, before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.config.arch import ArchConfig
from engine.config.cli import UsageError, collect, nearest
from engine.config.deepspeed_json import DeepSpeedSettings, complete_deepspeed_config
from engine.config.presets import resolve_arch
from engine.config.pretrain import OBJECTIVE_NAMES, PretrainConfig
from engine.convert.configs import config_to_huggingface, model_folder
from engine.convert.huggingface import huggingface_class
from engine.data.shard_sources import ShardSource, open_shards, sources_digest
from engine.downstream.plan import read_plan
from engine.models.model import parameter_names
from engine.objectives.base import PretrainingObjective, Vocabulary
from engine.objectives.registry import build_objective
from engine.optim.groups import pattern_problems
from engine.train.distributed import global_rank, world_size
from engine.train.initial import check_initial_weights
from engine.train.run import check_settings
from engine.train.run_record import run_record
from engine.train.timeline import Timeline
from preprocess.tokenizer import Tokenizer


@dataclass(frozen=True)
class Resolved:
    """A configuration whose parts were found and fit together."""

    config: PretrainConfig
    arch: ArchConfig
    objective: PretrainingObjective
    settings: DeepSpeedSettings
    timeline: Timeline
    sources: tuple[ShardSource, ...]
    tokenizer: Tokenizer


def resolve(config: PretrainConfig) -> Resolved:
    """Find and check everything that the settings name; UsageError lists all that is wrong."""
    problems = config.problems()
    config = config.completed()
    stages = config.all_stages()
    tree, shape, device = check_settings(config.ds_config, stages, problems, config.backend, config.dry_run)
    shards = collect(problems, lambda: open_shards(config.data.shards))
    found = collect(problems, lambda: resolve_arch(config.model))
    objective_name = config.objective or (found[1] if found else OBJECTIVE_NAMES[0])
    if objective_name not in OBJECTIVE_NAMES:
        names = ", ".join(OBJECTIVE_NAMES)
        problems.append(
            f"unknown objective {objective_name!r}; there are {names}{nearest(objective_name, OBJECTIVE_NAMES)}"
        )
    elif found:
        problems += config.unused(objective_name)
    arch = objective = None
    if shards and found:
        arch = _override(config, found[0], shards[1].vocab_size)
        problems += _arch_problems(config, arch, shards[1])
    if arch and shards and objective_name in OBJECTIVE_NAMES:
        ready, vocabulary = arch, vocabulary_of(shards[1])
        objective = collect(problems, lambda: build_objective(objective_name, config, ready, vocabulary))
    if arch and objective and not arch.problems():
        problems += pattern_problems(config.train.optimizer, parameter_names(arch, objective.make_heads))
        collect(problems, lambda: config_to_huggingface(ready, objective_name.split(","), vocabulary.special_ids))
    problems += _downstream_problems(config)
    if problems or not (tree is not None and shards and arch and objective):
        raise UsageError("\n".join(dict.fromkeys(problems)))
    settings = complete_deepspeed_config(tree, shape, device)
    timeline = Timeline(stages, config.masking.rate_at)
    return Resolved(config, arch, objective, settings, timeline, *shards)


def _downstream_problems(config: PretrainConfig) -> list[str]:
    """What is wrong with the file of ``train.evaluate_with``; every rank looks, so that all end with a mistake in it.

    The files of its tasks need to be on rank 0's host alone: with several ranks it looks for them when all have met.
    """
    train = config.train
    if train.evaluate_with is None:
        return []
    found: list[str] = []
    plan = collect(found, lambda: read_plan(str(train.evaluate_with)))
    if plan is None:
        return found
    if world_size() == 1 or (config.dry_run and global_rank() == 0):  # in a dry run they never meet
        collect(found, plan.refuse_absent_files)
    return found + plan.problems(train.save_every, train.steps)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """What objectives know of a tokenizer."""
    return Vocabulary(tokenizer.vocab_size, tokenizer.special_ids, tokenizer.all_special, tokenizer.continuation)


def _override(config: PretrainConfig, found: dict[str, Any], vocab_size: int) -> ArchConfig:
    given = {k: v for k, v in asdict(config.arch).items() if v is not None}
    return ArchConfig(**{**found, **given, "vocab_size": vocab_size})


def _arch_problems(config: PretrainConfig, arch: ArchConfig, tokenizer: Tokenizer) -> list[str]:
    problems = arch.problems()
    if config.init_from:
        folder = model_folder(config.init_from)
        collect(problems, lambda: check_initial_weights(arch, folder, tokenizer.digest))
    longest = max(length for stage in config.all_stages() for length in [stage.seq_length, *stage.length_ramp.values()])
    if longest > arch.max_positions:
        setting = "data.seq_length" if longest == config.data.seq_length else "the row length of a stage or ramp"
        problems.append(
            f"{setting} ({longest}) is above arch.max_positions ({arch.max_positions}); "
            f"shorten the rows or set --arch.max_positions {longest}"
        )
    collect(problems, lambda: huggingface_class(arch))
    return problems


def default_tree() -> dict[str, Any]:
    """What each setting is where it is not given, for runs of a version that did not know it."""
    return asdict(PretrainConfig(ds_config="").completed())


def resolved_tree(resolved: Resolved) -> dict[str, Any]:
    """All settings of a run as a JSON tree; what identifies data and tokenizer is in it by digest."""
    tree = asdict(resolved.config)
    tree["arch"] = {field.name: getattr(resolved.arch, field.name) for field in fields(resolved.arch)}
    tree["objective"] = resolved.objective.name
    tree["data"]["manifest_digest"] = sources_digest(resolved.sources)
    if len(resolved.sources) > 1:
        tree["data"]["folders"] = {str(source.manifest.folder): source.manifest.digest for source in resolved.sources}
        tree["data"]["weights"] = {source.manifest.digest[:16]: source.weight for source in resolved.sources}
    tree["data"]["tokenizer_digest"] = resolved.tokenizer.digest
    del tree["model"], tree["dry_run"]  # the architecture says the one, and the other is no setting of a run
    return {**tree, **run_record(resolved.settings)}
