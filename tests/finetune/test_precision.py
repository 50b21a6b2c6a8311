"""The loss of every task in 16 bits, and with the filler of fixed shapes: on a CPU in bf16, on a GPU in fp16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.data.batch import PackedBatch
from engine.data.filler import filled
from engine.models.model import Model, build_model
from finetune.config.run import FinetuneConfig
from finetune.config.tasks import TASK_NAMES
from finetune.tasks.base import Task
from finetune.training.finetuning import open_model
from finetune.training.labelled import read_labelled_files
from tests.finetune import tiny
from tests.finetune.test_every_task import write_files

KINDS = [name for name in TASK_NAMES if name != "multitask"]
PLACES = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bf16"),
    pytest.param("cuda", torch.float16, id="cuda-fp16", marks=pytest.mark.gpu),
    pytest.param("cuda", torch.bfloat16, id="cuda-bf16", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model folders and a file for each task."""
    folder = tmp_path_factory.mktemp("precision")
    write_files(folder / "data")
    tiny.write_pretrained(folder / "bert", tiny.BERT)
    tiny.write_pretrained(folder / "gpt2", tiny.GPT2)
    return folder


def parts(home: Path, kind: str) -> tuple[Task, Model, PackedBatch]:
    """A task, a model with its head, and a batch of the first examples."""
    suffix = {"multiple_choice": ".jsonl", "question_answering": ".json"}.get(kind, "")
    model = home / ("gpt2" if kind == "lm" else "bert")
    file = str(home / "data" / f"{kind}{suffix}")
    config = FinetuneConfig(ds_config="", model=str(model), train_file=file, dev_file=file, task=kind, max_length=32)
    problems: list[str] = []
    task, files = read_labelled_files(config, problems)
    assert task is not None and not problems
    _, arch, builder = open_model(config)
    batch = task.collate(builder, files["train"].examples(task, builder)[:9])
    return task, build_model(arch, task.make_heads(arch), seed=3).eval(), batch


def losses(task: Task, model: Model, batch: PackedBatch) -> dict[str, tuple[float, int]]:
    """Sum and number of targets of each term; every parameter of the heads gets a finite gradient."""
    model.zero_grad()
    terms = task.losses(model, batch)
    torch.stack([term.loss_sum.float() for term in terms.values()]).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    return {name: (float(term.loss_sum.detach()), term.num_targets) for name, term in terms.items()}


@pytest.mark.parametrize(("device", "dtype"), PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_changes_little(home: Path, kind: str, device: str, dtype: torch.dtype) -> None:
    task, model, batch = parts(home, kind)
    exact = losses(task, model, batch)
    place = torch.device(device)
    found = losses(task, model.to(place, dtype), batch.to(place))
    assert found.keys() == exact.keys()
    for name, (loss_sum, count) in exact.items():
        assert found[name][1] == count > 0 and found[name][0] == pytest.approx(loss_sum, rel=3e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_filler_changes_nothing(home: Path, kind: str) -> None:
    task, model, batch = parts(home, kind)
    exact, full = losses(task, model, batch), losses(task, model, filled(batch))
    for name, (loss_sum, count) in exact.items():
        assert full[name][1] == count and full[name][0] == pytest.approx(loss_sum, rel=1e-5)
