"""The manifest names the version of each library that decides documents, ids or bytes, and of no other."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.preprocess.building.test_sources import DUMP, REPOSITORY, run

SHARDS = {"tokenizers", "h5py", "hdf5", "hdf5plugin", "sentencex"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("".join(f"the cat number {n} and the dog\n\n" for n in range(300)))
    return path


@pytest.mark.parametrize(
    ("kind", "library"), [("bpe", "tiktoken"), ("unigram", "sentencepiece"), ("sentencepiece_bpe", "sentencepiece")]
)
def test_of_the_tokenizer(text: Path, tmp_path: Path, kind: str, library: str) -> None:
    size = {"bpe": "300"}.get(kind, "40")
    command = [sys.executable, "-m", "preprocess", "tokenizer", "--corpus", str(text), "--type", kind]
    command += ["--vocab_size", size, "--output", str(tmp_path / "tokenizer"), "--workers", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest, _ = run(tmp_path / "out", tmp_path / "tokenizer", [str(text)])
    versions = manifest.settings["versions"]
    assert versions.keys() == SHARDS | {library} and versions[library] == importlib.metadata.version(library)


def test_of_the_layouts(vocabulary_file: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("mwparserfromhell", reason="dumps need mwparserfromhell")
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["the cat", "the dog"]}), tmp_path / "a.parquet")
    (tmp_path / "a.xml").write_text(DUMP)
    arguments = [str(tmp_path / "a.parquet"), str(tmp_path / "a.xml"), str(text)]
    manifest, _ = run(tmp_path / "all", vocabulary_file, arguments)
    assert manifest.settings["versions"].keys() == SHARDS | {"mwparserfromhell", "pyarrow"}
    assert manifest.settings["versions"]["pyarrow"] == pyarrow.__version__
    manifest, _ = run(tmp_path / "text", vocabulary_file, [str(text)])
    assert manifest.settings["versions"].keys() == SHARDS


def test_a_finished_folder_tells_of_other_versions(
    vocabulary_file: Path, text: Path, tmp_path: Path, monkeypatch
) -> None:
    run(tmp_path / "out", vocabulary_file, [str(text)])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["versions"].keys() == SHARDS
    real = importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9" if name == "sentencex" else real(name))
    _, told = run(tmp_path / "out", vocabulary_file, [str(text)])
    assert any(line.startswith("note: it was made with other versions: sentencex was ") for line in told)
