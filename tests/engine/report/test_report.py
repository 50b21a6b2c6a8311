"""The report: what it reads, which curves it makes of it, and the page as a parser sees it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config.cli import EXIT_MISTAKE
from engine.report import facts
from engine.report.__main__ import main
from engine.report.curves import MAX_POINTS, charts, thinned, title_of
from engine.report.drawing import short
from engine.report.page import render_page
from engine.report.runs import load_runs, run_names
from preprocess.manifest import read_manifest
from tests import commands
from tests.html_pages import Page

HOSTILE = "<script>alert(1)</script>&\"'#0b0000"


@pytest.fixture(autouse=True)
def matplotlib():
    pytest.importorskip("matplotlib", reason="the curves need matplotlib")


def make_run(folder: Path, lines: list[dict[str, Any]], config: dict[str, Any] | None = None, tail: str = "") -> str:
    folder.mkdir(parents=True)
    settings = {"train": {"steps": 10, "output": str(folder)}, "objective": "mlm", **(config or {})}
    (folder / "config.json").write_text(json.dumps(settings))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + tail)
    return str(folder)


def line(step: int, **more: Any) -> dict[str, Any]:
    figures = {"loss": 5.0 / step, "lr": 1e-3, "tokens": 100 * step, "tokens_per_second": 50.0, "mfu": None}
    return {"step": step, **figures, **more}


def test_a_run_is_read_as_it_stands(tmp_path):
    lines = [line(1), line(3, grad_norm=math.nan), line(2), {"step": 2, "heldout_loss": 2.0}]
    path = make_run(tmp_path / "run", lines, tail='[1]\nrubbish\n{"loss": 1.0}\n{"step": 4, "loss": 0.')
    (run,) = load_runs([path])
    assert [point.step for point in run.points("loss")] == [1, 2, 3]
    assert run.points("grad_norm") == [] and run.last("mfu") is None
    assert run.num_unreadable == 3  # the last one is being written
    assert run.status().startswith("at step 3 of 10; last line written 2")
    assert run.training_seconds() == pytest.approx(300 / 50)
    (tmp_path / "run" / "FINISHED").touch()
    assert load_runs([path, path + "/"])[0].status() == "finished at step 3"
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "FINISHED").unlink()
    (empty,) = load_runs([path])
    assert (empty.status(), empty.step, empty.training_seconds(), empty.median_speed()) == (
        "no figures yet",
        0,
        None,
        None,
    )


def test_what_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    model, broken = tmp_path / "model", tmp_path / "broken"
    for folder in (tmp_path / "empty", model, broken):
        folder.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError) as caught:
        load_runs([str(tmp_path / name) for name in ("gone", "file", "empty", "model", "broken")])
    gone, file, empty, of_model, damaged, holds = str(caught.value).splitlines()
    assert gone.endswith("gone does not exist")
    assert file.endswith("file is a file, no run folder")
    assert empty.endswith("empty is no run folder: it holds no config.json")
    assert "its config.json is not that of a run (a model folder has a config.json too)" in of_model
    assert "broken/config.json is damaged: " in damaged
    assert holds == (
        "a run folder is what --train.output names; it holds config.json (settings), metrics.jsonl, checkpoints/, "
        "model and, when it ended well, FINISHED"
    )


def test_names_tell_runs_apart():
    assert run_names([Path("/a/b"), Path("/a/c")]) == ["b", "c"]
    assert run_names([Path("/x/b"), Path("/y/b"), Path("/y/c")]) == ["x/b", "y/b", "y/c"]


def test_charts_put_runs_over_each_other(tmp_path):
    first = [line(step, grad_norm=1.0) for step in range(1, 5)] + [{"step": 4, "heldout_loss": 1.5, "loss": None}]
    second = [line(2, loss_mlm=2.0, memory_bytes=2**30), {"step": 2, "downstream_sst_accuracy": 0.75}]
    runs = load_runs([make_run(tmp_path / "a", first), make_run(tmp_path / "b", second)])
    made = {(chart.title, chart.over): chart for chart in charts(runs)}
    assert list(made) == [
        ("Loss", "step"), ("Loss", "tokens"), ("Loss of mlm", "step"), ("sst accuracy", "step"),
        ("Learning rate", "step"), ("Gradient norm, before clipping", "step"), ("Real tokens per second", "step"),
        ("Peak memory of a rank, GiB", "step"),
    ]  # fmt: skip
    loss = made["Loss", "step"].curves
    assert [(curve.run, curve.held_out) for curve in loss] == [(0, False), (0, True), (1, False)]
    assert loss[0].x == [1, 2, 3, 4] and loss[0].y == [5.0 / step for step in (1, 2, 3, 4)]
    tokens = made["Loss", "tokens"].curves
    assert tokens[0].x == [100, 200, 300, 400] and tokens[1].x == [400]  # the evaluation after step 4
    assert made["Peak memory of a rank, GiB", "step"].curves[0].y == [1.0]
    score = made["sst accuracy", "step"]
    assert score.beside is not None and score.beside.curves == loss


def test_many_points_become_means_within_a_band():
    x, y = np.arange(1.0, 1203.0), np.random.default_rng(0).normal(size=1202)
    curve = thinned(0, False, x, y)
    assert curve.each == 3 and len(curve.x) == 401 <= MAX_POINTS
    for point in (0, 17, 400):
        part = slice(3 * point, 3 * point + 3)
        assert curve.x[point] == pytest.approx(x[part].mean()) and curve.y[point] == pytest.approx(y[part].mean())
        assert (curve.low[point], curve.high[point]) == (y[part].min(), y[part].max())
    few = thinned(0, False, x[:MAX_POINTS], y[:MAX_POINTS])
    assert few.each == 1 and few.low is None and few.y == y[:MAX_POINTS].tolist()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (950, "950"), (1500, "1,500"), (12345, "12.35k"), (3.5e6, "3.5M"), (2e9, "2B"), (2e-5, "2e-05"),
        (0.25, "0.25"),
    ],
)  # fmt: skip
def test_numbers_of_an_axis(value, text):
    assert short(value) == text


def test_titles():
    assert title_of("heldout_accuracy_nsp") == "Accuracy of nsp, %"
    assert title_of("heldout_loss/wiki") == "Loss on wiki"
    assert title_of("something_new") == "something new"


def test_the_page_of_several_runs(tmp_path):
    first = [line(step, skipped_steps=2) for step in range(1, 4)]
    config = {
        "train": {"steps": 10, "optimizer": {"lr": 1e-4}},
        "data": {"shards": HOSTILE, "manifest_digest": "ab" * 32},
    }
    paths = [make_run(tmp_path / "a", first), make_run(tmp_path / HOSTILE.replace("/", ""), first, config)]
    runs = load_runs([*paths, make_run(tmp_path / "c", [])])
    text = render_page(runs)
    page = Page(text)
    assert page.open == [] and not set(page.seen) & {"script", "img", "link", "iframe", "object", "b>"}
    assert page.seen["svg"] == len(charts(runs)) == page.seen["figure"]
    assert len(set(page.ids)) == len(page.ids) and all(ref[1:] in page.ids for ref in page.references)
    assert "default-src 'none'" in text and "http" not in text.replace("http-equiv", "").replace(
        "http://www.w3.org/", ""
    )
    assert page.text.count(HOSTILE) >= 1  # as plain text
    shown = "\n".join(page.text)
    assert "no figures yet" in shown and "at step 3 of 10" in shown and "Only what differs." in shown
    assert "train.optimizer.lr" in page.text and "0.0001" in page.text and "abababababababab" in page.text
    assert all(f"--run-{number}:" in text for number in range(3))
    assert not re.search("#0b00|#010203|#040506|#070809", re.sub("#0b0000", "", text))  # every stand-in became a colour
    assert render_page(runs) == text


def test_the_page_of_one_run_without_lines(tmp_path):
    runs = load_runs([make_run(tmp_path / "a", [])])
    page = Page(render_page(runs))
    assert page.open == [] and page.seen["svg"] == 0 and "There are no figures yet." in page.text


def test_many_runs_have_many_colours(tmp_path):
    runs = load_runs([make_run(tmp_path / f"run-{number}", [line(1), line(2)]) for number in range(12)])
    text = render_page(runs)
    colours = re.findall(r"--run-\d+: ([^;]+);", text)
    assert len(colours) == 24 and len(set(colours)) == 24


def test_figures_and_their_best(tmp_path):
    lines = [line(1), {"step": 1, "heldout_loss": 1.0, "heldout_accuracy": 0.5, "downstream_x_f1": 0.75}]
    lines += [line(2, eta=3725.0), {"step": 2, "heldout_loss": 2.0, "heldout_accuracy": 0.25}]
    rows = {row[0]: row[2] for row in facts.final_figures(load_runs([make_run(tmp_path / "a", lines)])).rows}
    assert rows["Loss"] == "2.5000" and rows["Time left, h:mm:ss"] == "1:02:05"
    assert (rows["Held out: Loss"], rows["Held out: Loss, best (at step)"]) == ("2", "1 (1)")
    assert (rows["Held out: Accuracy, %"], rows["Held out: Accuracy, %, best (at step)"]) == ("25", "50 (1)")
    assert rows["x f1, best (at step)"] == "0.7500 (1)"


def test_settings(tmp_path):
    one = make_run(tmp_path / "a", [], {"seed": 1, "masking": {"rate": 0.15}})
    two = make_run(tmp_path / "b", [], {"seed": 2, "masking": {"rate": 0.15}, "extra": [1]})
    table = facts.settings(load_runs([one, two]))
    assert table.rows == (("extra", "-", "[1]"), ("seed", "1", "2"))
    same = facts.settings(load_runs([one, make_run(tmp_path / "c", [], {"seed": 1, "masking": {"rate": 0.15}})]))
    assert same.rows == () and same.about == "All settings are the same."
    alone = facts.settings(load_runs([two]))
    assert ("seed", "2", "1") in alone.rows and "masking.rate" not in [row[0] for row in alone.rows]
    tuned = facts.settings(load_runs([make_run(tmp_path / "d", [], {"task": "classification", "max_length": 128})]))
    assert ("max_length", "128") in tuned.rows


def test_sources_of_a_mixture(tmp_path, shards):
    manifest = read_manifest(shards)
    folders = {str(shards): manifest.digest, str(tmp_path / "gone"): "0" * 64}
    weights = {manifest.digest[:16]: 0.7, "0" * 16: 0.3}
    data = {"folders": folders, "weights": weights, "tokenizer_digest": "f" * 64}
    lines = [line(1, **{f"rows/{shards.name}": 70, "rows/gone": 30})]
    first, second, tokenizer = facts.data(load_runs([make_run(tmp_path / "a", lines, {"data": data})])).rows
    counts = (f"{manifest.counts['documents']:,}", f"{manifest.counts['tokens']:,}")
    assert first == ("a", str(shards), "70.00%, 70 rows so far", manifest.digest[:16], *counts)
    assert second[2:] == ("30.00%, 30 rows so far", "0" * 16, "-", "-")
    changed = {"shards": str(shards), "manifest_digest": "1" * 64}  # made anew since
    (row, _) = facts.data(load_runs([make_run(tmp_path / "b", [], {"data": changed})])).rows
    assert row == ("b", str(shards), "all", "1" * 16, "-", "-")
    assert tokenizer == ("a", "tokenizer", "-", "f" * 16, "-", "-")


def test_the_command(tmp_path, capsys, monkeypatch):
    path = make_run(tmp_path / "a", [line(1)])
    monkeypatch.chdir(tmp_path)
    assert main([path]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote report.html"
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).open == []
    assert main([path, "--output", str(tmp_path)]) == EXIT_MISTAKE
    assert "give the name of a file in a folder that exists" in capsys.readouterr().err
    assert main([str(tmp_path / "b")]) == EXIT_MISTAKE
    assert "b does not exist" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([path]) == EXIT_MISTAKE
    assert "the curves of a report are drawn with matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_python_m(tmp_path):
    path = make_run(tmp_path / "a", [line(1)])
    command = [sys.executable, "-m", "engine.report", path, "--output", str(tmp_path / "x.html")]
    env = {**os.environ, "PYTHONPATH": str(commands.REPOSITORY)}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith(f"wrote {tmp_path / 'x.html'}\n"), done.stderr
