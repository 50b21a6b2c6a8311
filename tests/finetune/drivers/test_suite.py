"""Suites: the public files in their own formats, the runs, the table, the submission."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engine.config.cli import UsageError
from finetune import suite
from finetune.config.tasks import TASK_NAMES
from finetune.drivers import suite_runs
from finetune.drivers.config import SuiteConfig
from finetune.drivers.processes import Done
from finetune.drivers.public_files import PublicFile, convert, find
from finetune.drivers.submission import best_run, predictions, write_submission
from finetune.drivers.suite_runs import Suite, merged
from finetune.drivers.suite_spec import ROLES, read_suite
from tests.finetune import tiny
from tests.finetune.drivers import public
from tests.finetune.drivers.public import KINDS


def converted(name: str, folder: Path, task: str, role: str) -> list[dict[str, str]]:
    """The records of a task's file; those of a file that the task itself reads are not read here."""
    spec = next(found for found in read_suite(name).tasks if found.name == task)
    file = find(folder, getattr(spec, role) if role in ROLES else spec.more[role].files)
    assert file is not None
    made = convert(folder, file, folder / "made.jsonl")
    return [json.loads(line) for line in made.path.read_text(encoding="utf-8").splitlines()]


def test_glue_files_are_read_in_their_own_formats(tmp_path):
    public.write_glue(tmp_path)
    pair = {"text_a": public.text(1), "text_b": public.text(2)}
    expected: dict[tuple[str, str], tuple[int, dict[str, str]]] = {
        ("cola", "train"): (12, {"label": "1", "text_a": public.text(1, 1)}),
        ("cola", "test"): (5, {"index": "1", "text_a": public.text(1)}),
        ("sst2", "dev"): (6, {"label": "1", "text_a": public.text(1) + " "}),
        ("mrpc", "train"): (6, {"label": "1", **pair}),
        ("mrpc", "test"): (3, {"index": "1", "text_a": public.text(1), "text_b": public.text(1)}),
        ("stsb", "train"): (6, {"label": "1.000", **pair}),
        ("stsb", "test"): (3, {"index": "1", **pair}),
        ("qqp", "train"): (6, {"label": "1", **pair}),
        ("qqp", "test"): (3, {"index": "1", "text_a": public.text(1), "text_b": public.text(1)}),
        ("mnli", "train"): (12, {"label": "neutral", "text_a": public.text(1, 1), "text_b": public.text(8)}),
        ("mnli", "dev"): (11, {"label": "contradiction", "text_a": public.text(2, 2), "text_b": public.text(9)}),
        ("mnli", "dev_mismatched"): (11, {"label": KINDS[2], "text_a": public.text(2, 2), "text_b": public.text(9)}),
        ("mnli", "test_mismatched"): (12, {"index": "101", "text_a": public.text(1, 1), "text_b": public.text(8)}),
        ("qnli", "dev"): (6, {"label": "not_entailment", **pair}),
        ("rte", "train"): (6, {"label": "not_entailment", **pair}),
        ("wnli", "test"): (3, {"index": "1", "text_a": public.text(1), "text_b": public.text(1)}),
    }  # fmt: skip
    for (task, role), (count, second) in expected.items():
        found = converted("glue", tmp_path, task, role)
        assert (len(found), found[1]) == (count, second), (task, role)
    for spec in read_suite("glue").tasks:
        for role in ROLES:
            assert converted("glue", tmp_path, spec.name, role)


def test_clue_files_are_read_in_their_own_formats(tmp_path):
    public.write_clue(tmp_path)
    expected: dict[tuple[str, str], tuple[int, dict[str, str]]] = {
        ("afqmc", "train"): (4, {"label": "1", "text_a": "借呗1", "text_b": "花呗1"}),
        ("afqmc", "test"): (3, {"index": "11", "text_a": "借", "text_b": "花"}),
        ("tnews", "dev"): (4, {"label": "101", "text_a": "新闻1"}),
        ("iflytek", "dev"): (4, {"label": "1", "text_a": "应用1"}),
        ("cmnli", "train"): (3, {"label": "neutral", "text_a": "前提1", "text_b": "假设"}),
        ("ocnli", "dev"): (3, {"label": "neutral", "text_a": "前提1", "text_b": "假设"}),
        ("csl", "train"): (4, {"label": "1", "text_a": "水声；材料", "text_b": "摘要1"}),
        ("xnli", "train"): (4, {"label": "contradiction", "text_a": "前提1", "text_b": "假设"}),
        ("xnli", "test"): (3, {"label": "contradiction", "text_a": "前提2", "text_b": "假设"}),
        ("lcqmc", "train"): (4, {"text_a": "甲1", "text_b": "乙1", "label": "1"}),
        ("bq", "dev"): (4, {"text_a": "甲1", "text_b": "乙", "label": "1"}),
        ("chnsenticorp", "train"): (4, {"label": "1", "text_a": "酒店1"}),
    }
    for (task, role), (count, second) in expected.items():
        found = converted("clue", tmp_path, task, role)
        assert (len(found), found[1]) == (count, second), (task, role)


def test_what_is_left_out_of_a_file_is_told(tmp_path):
    public.write_glue(tmp_path)
    public.write_clue(tmp_path)
    notes = []
    for name, task, role in (("glue", "qqp", "train"), ("glue", "mnli", "dev"), ("clue", "xnli", "dev")):
        spec = next(found for found in read_suite(name).tasks if found.name == task)
        notes += convert(tmp_path, getattr(spec, role)[0], tmp_path / "made.jsonl").notes
    assert [note.partition(": ")[2] for note in notes] == [
        "1 malformed lines are left out: 8",
        "1 lines have the label - and are left out",
        "3 lines are not of language zh and left out",
    ]


def test_malformed_public_files_are_errors(tmp_path):
    public.tsv(tmp_path / "a.tsv", ["sentence", "label"], [("one", 1), ("two",)])
    columns = {"label": "label", "text_a": "sentence"}
    with pytest.raises(ValueError, match=r"a.tsv, line 3: 1 columns, but its first line names 2"):
        convert(tmp_path, PublicFile("a.tsv", columns), tmp_path / "x")
    with pytest.raises(ValueError, match="must name a column 'lable', but has 'sentence', 'label'; did you mean label"):
        convert(tmp_path, PublicFile("a.tsv", {"label": "lable"}), tmp_path / "x")
    with pytest.raises(ValueError, match="line 1: there is no column 7"):
        convert(tmp_path, PublicFile("a.tsv", {"text_a": 7}), tmp_path / "x")
    public.tsv(tmp_path / "b.tsv", ["sentence", "label"], [])
    with pytest.raises(ValueError, match=r"b.tsv holds no examples"):
        convert(tmp_path, PublicFile("b.tsv", columns), tmp_path / "x")
    assert not (tmp_path / "x").exists()


SHARED = {
    "CoLA/train.tsv": "cls_en_cola/train.tsv",
    "CoLA/dev.tsv": "cls_en_cola/dev.tsv",
    "MRPC/train.tsv": "pair_en_mrpc/train.tsv",
    "MRPC/dev.tsv": "pair_en_mrpc/val.tsv",
    "MRPC/msr_paraphrase_test.txt": "pair_en_mrpc/test.tsv",
    "AFQMC/train.txt": "pair_zh_afqmc/train.tsv",
    "AFQMC/dev.txt": "pair_zh_afqmc/dev.tsv",
    "ChnSentiCorp/train.tsv": "cls_zh_book_review/train.tsv",
    "squad-style-data/cmrc2018_trial.json": "qa_zh_cmrc2018/trial.json",
}


def lay_out(shared: Path, folder: Path) -> None:
    """The shared files under the public names; two of them with the first lines that GLUE gives them."""
    for name, source in SHARED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shared / source, folder / name)
    for name, theirs in (("train", "train"), ("dev", "dev")):
        lines = (shared / f"cls_en_sst2/{theirs}.tsv").read_text(encoding="utf-8").rstrip("\n").split("\n")
        public.tsv(folder / f"SST-2/{name}.tsv", ["sentence", "label"], [line.split("\t") for line in lines])
        rows = [
            line.split("\t")
            for line in (shared / f"sts_en_stsb/{theirs}.csv").read_text("utf-8").rstrip("\n").split("\n")
        ]
        stsb = [(n, *row[:4], "none", "none", row[5], row[6], row[4]) for n, row in enumerate(rows)]
        public.tsv(folder / f"STS-B/{name}.tsv", [*public.STSB, "score"], stsb)


def test_real_files_under_the_public_names(shared_data, tmp_path):
    lay_out(shared_data, tmp_path)
    counts = {
        (suite, task, role): len(converted(suite, tmp_path, task, role))
        for suite, task, role in (
            ("glue", "cola", "train"), ("glue", "cola", "dev"), ("glue", "sst2", "train"), ("glue", "sst2", "dev"),
            ("glue", "mrpc", "train"), ("glue", "mrpc", "dev"), ("glue", "mrpc", "test"), ("glue", "stsb", "train"),
            ("glue", "stsb", "dev"), ("clue", "afqmc", "train"), ("clue", "afqmc", "dev"),
            ("clue", "chnsenticorp", "train"),
        )
    }  # fmt: skip
    assert list(counts.values()) == [8551, 527, 6920, 872, 3576, 500, 1725, 5749, 1500, 34334, 4316, 20000]
    first = converted("glue", tmp_path, "mrpc", "train")[0]
    assert first["label"] == "1" and first["text_a"].startswith(
        'Amrozi accused his brother, whom he called "the witness"'
    )
    assert not first["text_b"].endswith("\r")


class FakeJobs:
    """Ends jobs at once, with figures that depend on their names."""

    begun: list[str]

    def __init__(self, slots: list[Any], timeout: float) -> None:
        self.jobs: list[str] = []

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def running(self) -> list[str]:
        return self.jobs

    @property
    def has_room(self) -> bool:
        return not self.jobs

    def begin(self, name: str, folder: Path, settings: dict[str, Any]) -> None:
        FakeJobs.begun.append(name)
        assert Path(settings["train_file"]).is_file() and Path(settings["dev_file"]).is_file()
        run = folder / "run"
        run.mkdir(exist_ok=True)
        (run / "results.json").write_text('{"num_examples": {"train": 7}}')
        if "test_file" in settings:
            count = len(Path(settings["test_file"]).read_text().splitlines())
            cell = "9.5" if name == "stsb" else "1"
            lines = ["score" if name == "stsb" else "label", *[cell] * count]
            (run / "test_predictions.tsv").write_text("".join(f"{line}\n" for line in lines))
        self.jobs.append(name)

    def next_done(self) -> Done:
        name = self.jobs.pop()
        if name == "wnli":
            return Done(name, None, "it broke\nin the middle", 2.0)
        figures = {"dev_accuracy": 0.8, "dev_f1": 0.9, "dev_matthews": 0.5, "dev_pearson": 0.7, "dev_spearman": 0.6}
        return Done(name, {**figures, "main_figure": "accuracy"}, "", 2.0)


@pytest.fixture
def fake(monkeypatch):
    """Suites whose runs take no time."""
    monkeypatch.setattr(suite_runs, "FinetuneJobs", FakeJobs)
    monkeypatch.setattr(FakeJobs, "begun", [], raising=False)
    monkeypatch.setattr(suite_runs, "settings_problems", lambda settings, owner: [])

    def predict(run: Path, source: Path, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        count = len(source.read_text().splitlines())
        output.write_text("label\n" + "neutral\n" * count)

    monkeypatch.setattr(suite_runs, "predict", predict)
    return FakeJobs


def config(folder: Path, **more: Any) -> SuiteConfig:
    given = {
        "suite": "glue",
        "data": str(folder / "data"),
        "model": "bert",
        "ds_config": "x",
        "output": str(folder / "o"),
    }
    return SuiteConfig(**given, **more)


def test_table_average_and_submission(fake, tmp_path):
    public.write_glue(tmp_path / "data")
    shutil.rmtree(tmp_path / "data/RTE")
    with pytest.raises(ValueError, match="wnli failed; the same command tries again"):
        Suite(config(tmp_path)).run()
    rows = {line.split("\t")[0]: line.split("\t") for line in (tmp_path / "o/suite.tsv").read_text().splitlines()}
    assert rows["CoLA"] == ["CoLA", "matthews", "50.00", "-", "7", "2.0000", "done"]
    assert rows["MRPC"][1:3] == ["f1 / accuracy", "90.00 / 80.00"] and rows["STS-B"][2] == "70.00 / 60.00"
    assert rows["RTE"][-1] == "skipped: RTE/train.tsv is not there" and rows["WNLI"][-1] == "failed: it broke"
    assert rows["MNLI-mm"][2] == "36.36"  # 4 of 11 are neutral
    scores = [50, 80, 85, 65, 85, (80 + 100 * 4 / 11) / 2, 80]
    assert rows["average"][2] == f"{sum(scores) / 7:.2f}" and rows["average"][-1] == "of 7 of 9 tasks"
    submitted = tmp_path / "o/submission"
    assert (submitted / "CoLA.tsv").read_text() == "index\tprediction\n0\t1\n1\t1\n2\t1\n3\t1\n4\t1\n"
    assert (submitted / "STS-B.tsv").read_text() == "index\tprediction\n0\t5.000\n1\t5.000\n2\t5.000\n"
    assert (submitted / "MNLI-mm.tsv").read_text().startswith("index\tprediction\n100\tneutral\n101\tneutral\n")
    names = zipfile.ZipFile(submitted / "submission.zip").namelist()
    assert names == sorted(
        ["AX.tsv", *(f"{n}.tsv" for n in ("CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "SST-2", "STS-B"))]
    )


def test_a_second_start_makes_what_is_missing(fake, tmp_path):
    public.write_cola(tmp_path / "data")
    public.write_mnli(tmp_path / "data")
    Suite(config(tmp_path, tasks=["cola"])).run()
    Suite(config(tmp_path)).run()
    assert fake.begun == ["cola", "mnli"]
    with pytest.raises(UsageError, match="cola was measured with other settings or files"):
        Suite(config(tmp_path, settings={"seed": 3}))


def test_public_files_are_read_again_where_they_changed(fake, tmp_path):
    public.write_cola(tmp_path / "data")
    file = tmp_path / "data/CoLA/train.tsv"
    whole = file.read_bytes()
    file.write_bytes(b"a\tb\n")
    with pytest.raises(ValueError, match="cola failed"):
        Suite(config(tmp_path)).run()
    file.write_bytes(whole)
    Suite(config(tmp_path)).run()
    assert fake.begun == ["cola"]
    test = tmp_path / "data/CoLA/test.tsv"  # of the same size
    test.write_bytes(test.read_bytes().replace(b"apple", b"grape"))
    with pytest.raises(UsageError, match="cola was measured with other settings or files"):
        Suite(config(tmp_path))
    shutil.rmtree(tmp_path / "o/cola/run")
    (tmp_path / "o/cola/task.json").unlink()
    Suite(config(tmp_path)).run()
    assert "grape" in (tmp_path / "o/cola/data/test.jsonl").read_text()


def test_two_suites_in_one_folder_are_refused(fake, tmp_path):
    public.write_cola(tmp_path / "data")
    first = Suite(config(tmp_path))
    with pytest.raises(UsageError, match=r"another sweep or suite is at work in --output .*\(process \d+ on .*\)"):
        Suite(config(tmp_path))
    first.run()
    Suite(config(tmp_path)).run()
    assert fake.begun == ["cola"]


def test_the_names_of_clues_submission_are_those_of_its_notes():
    """CLUEbenchmark's README, "submit": version 1.1 of TNEWS, and the others."""
    found = {task.name: task.submission for task in read_suite("clue").tasks if task.submission}
    names = {"afqmc": "afqmc_predict", "tnews": "tnews11_predict", "iflytek": "iflytek_predict"}
    names |= {"cmnli": "cmnli_predict", "ocnli": "ocnli_50k_predict", "csl": "csl_predict"}
    assert found == {task: f"{name}.json" for task, name in names.items()}


def test_settings_of_suite_task_and_user_come_together(fake, tmp_path):
    public.write_cola(tmp_path / "data")
    more = {
        "settings": {"epochs": 5, "train": {"batch_size": 8}},
        "task_settings": {"cola": {"train": {"log_every": 2}}},
    }
    found = Suite(config(tmp_path, **more)).settings("cola")
    assert (found["epochs"], found["max_length"], found["train"]) == (5, 128, {"batch_size": 8, "log_every": 2})
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_mistakes_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"no such folder"):
        Suite(config(tmp_path))
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"has the files of no task: CoLA/train.tsv is not there"):
        Suite(config(tmp_path))
    with pytest.raises(UsageError, match=r"tasks: the suite has no task 'kola'.*did you mean cola"):
        Suite(config(tmp_path, tasks=["kola"]))
    with pytest.raises(UsageError, match="settings: train_file is given; the suite sets it"):
        Suite(config(tmp_path, settings={"train_file": "x"}))
    public.write_cola(tmp_path / "data")
    with pytest.raises(UsageError, match=r"cola: unknown key epoch; did you mean epochs"):
        Suite(config(tmp_path, settings={"epoch": 2}))
    with pytest.raises(UsageError, match=r"no such file, and the suites are clue, glue; did you mean glue"):
        read_suite("gleu")
    for text, message in (
        ("tasks: 3", "must hold title, and tasks"),
        ("title: x\ntasks: {a: {trian: f}}", "did you mean train"),
    ):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UsageError, match=message):
            read_suite(str(tmp_path / "own.yaml"))


def test_the_submission_of_several_seeds_is_the_best_ones(tmp_path):
    for seed, figure in ((1, 0.5), (2, 0.9), (3, 0.7)):
        (tmp_path / f"run/seed-{seed}").mkdir(parents=True)
        results = {"main_figure": "accuracy", "dev_accuracy": figure}
        (tmp_path / f"run/seed-{seed}/results.json").write_text(json.dumps(results))
    assert best_run(tmp_path / "run").name == "seed-2" and best_run(tmp_path).name == tmp_path.name


def test_several_seeds_give_means_and_deviations(fake, tmp_path, monkeypatch):
    public.write_cola(tmp_path / "data")
    summary = {
        "main_figure": "matthews",
        "figures": {"dev_matthews": {"mean": 0.5, "sd": 0.01, "values": [0.49, 0.51]}},
    }
    monkeypatch.setattr(fake, "next_done", lambda self: Done(self.jobs.pop(), summary, "", 1.0))
    Suite(config(tmp_path)).run()
    assert "| CoLA | matthews | 50.00 ± 1.00 | - | 7 |" in (tmp_path / "o/suite.md").read_text()


def test_further_files_are_predicted_with_every_seed(fake, tmp_path, monkeypatch):
    public.write_mnli(tmp_path / "data")
    figures = {"dev_accuracy": {"mean": 0.5, "sd": 0.01, "values": [0.49, 0.51]}}
    begin = fake.begin

    def seeded(self: Any, name: str, folder: Path, settings: dict[str, Any]) -> None:
        begin(self, name, folder, settings)
        for seed, figure in ((1, 0.49), (2, 0.51)):
            (folder / f"run/seed-{seed}").mkdir()
            found = {"main_figure": "accuracy", "dev_accuracy": figure, "num_examples": {"train": 7}}
            (folder / f"run/seed-{seed}/results.json").write_text(json.dumps(found))

    def predict(run: Path, source: Path, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        label = {"seed-1": "neutral", "seed-2": "entailment"}[run.name]
        output.write_text("label\n" + f"{label}\n" * (source.read_text().count("\n")))

    monkeypatch.setattr(fake, "begin", seeded)
    monkeypatch.setattr(suite_runs, "predict", predict)
    done = {"main_figure": "accuracy", "figures": figures}
    monkeypatch.setattr(fake, "next_done", lambda self: Done(self.jobs.pop(), done, "", 1.0))
    Suite(config(tmp_path)).run()
    mean, sd = 100 * (4 + 3) / 22, 100 * (1 / 11) / 2**0.5  # 4 of 11 are neutral, 3 entailment
    assert f"| MNLI-mm | accuracy | {mean:.2f} ± {sd:.2f} |" in (tmp_path / "o/suite.md").read_text()
    assert "neutral" not in (tmp_path / "o/submission/MNLI-mm.tsv").read_text()  # of the best seed


def test_clue_submission(tmp_path):
    (tmp_path / "p.tsv").write_text("label\n0\n1\n")
    (tmp_path / "asked.jsonl").write_text('{"index": "10", "text_a": "a"}\n{"index": "x", "text_a": "b"}\n')
    write_submission(tmp_path / "s", "clue", {"afqmc_predict.json": (tmp_path / "p.tsv", tmp_path / "asked.jsonl")})
    assert (tmp_path / "s/afqmc_predict.json").read_text() == '{"id": 10, "label": "0"}\n{"id": "x", "label": "1"}\n'


@pytest.mark.parametrize("name", ["glue", "clue"])
def test_suites_name_tasks_and_metrics_that_there_are(name):
    for task in read_suite(name).tasks:
        assert task.task in {*TASK_NAMES, "question_answering", "multiple_choice"}, task.name
        assert task.train and task.metrics


def test_real_runs(bert, tmp_path):
    """Two tasks by the command line, one of them with two sets to measure on."""
    public.write_cola(tmp_path / "data", 24)
    public.write_mnli(tmp_path / "data", 24)
    settings = {"max_length": 40, "epochs": 8, "train": {"batch_size": 8, "micro_batch_size": 4, "tensorboard": False}}
    settings["train"] |= {"optimizer": {"lr": 3e-3}}
    given = ["--suite", "glue", "--data", tmp_path / "data", "--model", bert, "--ds_config", tiny.FP32, "--output",
             tmp_path / "o", "--jobs", "2", "--settings", json.dumps(settings)]  # fmt: skip
    assert suite.main(list(map(str, given))) == 0
    table = (tmp_path / "o/suite.md").read_text()
    results = json.loads((tmp_path / "o/mnli/run/results.json").read_text())
    assert f"| MNLI-m | accuracy | {100 * results['dev_accuracy']:.2f} |" in table
    # the two sets hold the same sentences here, so accuracy by prediction must be that of the run
    assert f"| MNLI-mm | accuracy | {100 * results['dev_accuracy']:.2f} |" in table
    column, cells = predictions(tmp_path / "o/mnli/predictions/test_mismatched.tsv")
    lines = (tmp_path / "o/submission/MNLI-mm.tsv").read_text().splitlines()
    assert column == "label" and lines[1:] == [f"{n + 100}\t{cell}" for n, cell in enumerate(cells)]
    assert len((tmp_path / "o/submission/CoLA.tsv").read_text().splitlines()) == 6


def test_files_that_a_task_reads_itself_stay_where_they_are(shared_data, tmp_path):
    lay_out(shared_data, tmp_path)
    spec = next(found for found in read_suite("clue").tasks if found.name == "cmrc2018")
    file = find(tmp_path, spec.test)
    assert file is not None
    assert convert(tmp_path, file, tmp_path / "x.jsonl").path == tmp_path / "squad-style-data/cmrc2018_trial.json"
    assert not (tmp_path / "x.jsonl").exists()
