"""Predictions of a benchmark's tests, and the files that are submitted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.drivers.public_files import INDEX, LABEL
from preprocess.files import write_atomically

SCORE = "score"
BEST_SCORE, LEAST_SCORE = 5.0, 0.0  # of STS-B
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # so that a zip of the same content has the same bytes


def best_run(run: Path) -> Path:
    """The run itself, or of several seeds the one with the best main figure on the dev file."""
    runs = runs_of(run)
    if runs == [run]:
        return run

    def figure(folder: Path) -> float:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        return float(results[f"dev_{results['main_figure']}"])

    return max(runs, key=figure)


def runs_of(run: Path) -> list[Path]:
    """The run itself, or the runs of its seeds."""
    return [file.parent for file in sorted(run.glob("seed-*/results.json"))] or [run]


def predict(run: Path, source: Path, output: Path) -> None:
    """Predict a file with a run's model, in this process."""
    from finetune.config.predict import PredictConfig
    from finetune.inference.prediction import predict_file  # torch takes seconds to import

    output.parent.mkdir(parents=True, exist_ok=True)
    predict_file(PredictConfig(model=str(run), input=str(source), output=str(output)))


def predictions(file: Path) -> tuple[str, list[str]]:
    """The name of the first column of a file of predictions, and its cells."""
    header, *lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return header.split("\t")[0], [line.split("\t")[0] for line in lines]


def records(file: Path) -> list[dict[str, Any]]:
    """The lines of a converted file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def accuracy_of(predicted: Path, labelled: Path) -> float:
    """The share of a file's labels that were predicted."""
    _, found = predictions(predicted)
    right = [record[LABEL].strip() for record in records(labelled)]
    return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)


def write_submission(folder: Path, kind: str, files: Mapping[str, tuple[Path, Path]]) -> None:
    """Write files to submit, and all of them as a zip.

    Args:
        folder: gets them.
        kind: glue: a TSV of index and prediction; clue: JSON Lines of id and label.
        files: name -> predictions, and the file that was predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (predicted, asked) in sorted(files.items()):
            column, cells = predictions(predicted)
            indices = [record.get(INDEX, str(number)) for number, record in enumerate(records(asked))]
            text = FORMATS[kind](indices, [_scored(cell) if column == SCORE else cell for cell in cells])
            write_atomically(folder / name, text.encode())
            archive.writestr(zipfile.ZipInfo(name, LONG_AGO), text)


def _scored(cell: str) -> str:
    """A score within its limits, with three digits."""
    return f"{min(BEST_SCORE, max(LEAST_SCORE, float(cell))):.3f}"


def _glue(indices: list[str], cells: list[str]) -> str:
    return "index\tprediction\n" + "".join(f"{i}\t{cell}\n" for i, cell in zip(indices, cells, strict=True))


def _clue(indices: list[str], cells: list[str]) -> str:
    lines = [
        json.dumps({"id": int(i) if i.isdecimal() else i, "label": cell}, ensure_ascii=False)
        for i, cell in zip(indices, cells, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)


FORMATS = {"glue": _glue, "clue": _clue}
