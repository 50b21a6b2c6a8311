"""Whole runs: the same bytes for any number of workers, taking over folders, failing well."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import preprocess.files
from preprocess.building.build import build_shards
from preprocess.building.settings import ShardSettings
from preprocess.cleaning.settings import CleaningSettings
from preprocess.corpus.corpus import CorpusSettings
from preprocess.manifest import read_manifest
from preprocess.shards import ShardReader
from preprocess.tokenizer import Tokenizer, load_tokenizer


def run(corpus: list[Path], tokenizer: Path, output: Path, **settings) -> list[str]:
    """Build shards and return what the user is told."""
    told: list[str] = []
    build_shards(make_settings(corpus, tokenizer, output, **settings), say=told.append)
    return told


def make_settings(corpus: list[Path], tokenizer: Path, output: Path, **settings) -> ShardSettings:
    """Return settings for small shards; those of corpus and cleaning are given beside the others."""
    parts = {}
    for name, kind, own in (
        ("corpus", CorpusSettings, {"arguments": list(map(str, corpus))}),
        ("cleaning", CleaningSettings, {}),
    ):
        names = {field.name for field in dataclasses.fields(kind)}
        parts[name] = kind(**own, **{key: settings.pop(key) for key in list(settings) if key in names})
    settings = {"shard_bytes": 8000, "heldout": 0.1, **settings}
    return ShardSettings(**parts, tokenizer=str(tokenizer), output=str(output), **settings)


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_bytes_do_not_depend_on_workers(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    corpus = sorted(corpus_folder.iterdir())
    found = []
    for workers in (1, 2, 5):
        run(corpus, vocabulary_file, tmp_path / str(workers), workers=workers, shard_bytes=3500)
        found.append(digests(tmp_path / str(workers)))
    assert found[0] == found[1] == found[2]
    assert len([name for name in found[0] if name.startswith("shard-")]) >= 7
    assert len([name for name in found[0] if name.startswith("heldout/shard-")]) >= 3
    assert {"manifest.json", "heldout/manifest.json", "tokenizer/tokenizer.json"} <= found[0].keys()
    assert multiprocessing.active_children() == []


def test_documents_of_the_shards(tmp_path: Path, tokenizer: Tokenizer, vocabulary_file: Path) -> None:
    """All documents arrive in order with their sources, whatever the block size."""
    (tmp_path / "a.txt").write_text("the cat\nthe dog\n\nmasking\n\n\u200b\n\nx y z\n")
    (tmp_path / "b.txt").write_text("中文字\nthe token\n")
    expected = [
        ("a", ["the cat", "the dog"]),
        ("a", ["masking"]),
        ("a", ["x y z"]),
        ("b", ["中文字"]),
        ("b", ["the token"]),
    ]
    for block_bytes in (16, 31, 1000):
        output = tmp_path / f"shards-{block_bytes}"
        run([tmp_path / "a.txt", tmp_path / "b.txt"], vocabulary_file, output, shard_bytes=block_bytes, heldout=0)
        manifest = read_manifest(output)
        found = []
        for entry in manifest.shards:
            reader = ShardReader(output / entry.file, entry)
            for index, (start, stop) in enumerate(itertools.pairwise(reader.document_offsets.tolist())):
                inner = [offset for offset in reader.sentence_offsets.tolist() if start <= offset <= stop]
                sentences = [reader.tokens(*pair).tolist() for pair in itertools.pairwise(inner)]
                found.append((manifest.sources[reader.document_source[index]].name, sentences))
        assert found == [(name, [tokenizer.encode([text])[0].tolist() for text in texts]) for name, texts in expected]
        assert manifest.counts["dropped_documents_without_tokens"] == 1
        assert manifest.counts["dropped_sentences_without_tokens"] == 1
        assert manifest.tokenizer["digest"] == tokenizer.digest == load_tokenizer(output / "tokenizer").digest
        assert not (output / "heldout").exists()
    assert [shard.file for shard in read_manifest(tmp_path / "shards-16").shards] != []


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_other_compressions(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path, compression: str) -> None:
    run([corpus_folder], vocabulary_file, tmp_path / "a", compression=compression)
    run([corpus_folder], vocabulary_file, tmp_path / "b")
    first, second = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert [shard.content_sha256 for shard in first.shards] == [shard.content_sha256 for shard in second.shards]
    assert [shard.sha256 for shard in first.shards] != [shard.sha256 for shard in second.shards]


def test_finished_folder_is_recognised(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    corpus = [corpus_folder]
    run(corpus, vocabulary_file, tmp_path / "shards")
    before = digests(tmp_path / "shards")
    told = run(corpus, vocabulary_file, tmp_path / "shards", workers=2)
    assert "is complete: the same settings and inputs made it" in told[-1]
    assert digests(tmp_path / "shards") == before
    for change, message in [
        ({"shard_bytes": 9000}, "shard_bytes was 8000 and is 9000"),
        ({"heldout": 0.2}, "heldout was 0.1 and is 0.2"),
        ({"compression": "none"}, "compression was zstd and is none"),
        ({"lowercase": False}, "tokenizer was .* and is"),
    ]:
        with pytest.raises(ValueError, match=rf"made differently: {message}.*another --output, or delete"):
            run(corpus, vocabulary_file, tmp_path / "shards", **change)
    with pytest.raises(ValueError, match=r"the inputs have changed: corpus\d*/a.txt is gone.* a/a.txt is new"):
        run([corpus_folder / "a.txt"], vocabulary_file, tmp_path / "shards")
    assert digests(tmp_path / "shards") == before


def test_changed_input_is_noticed(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("the cat\n\nthe dog\n")
    run([tmp_path / "x.txt"], vocabulary_file, tmp_path / "shards", heldout=0)
    (tmp_path / "x.txt").write_text("the cat\n\nthe dig\n")
    with pytest.raises(ValueError, match="finished shards of other text: the input files have changed"):
        run([tmp_path / "x.txt"], vocabulary_file, tmp_path / "shards", heldout=0)


def test_foreign_folders_are_left_alone(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(
        ValueError, match=r"mine is not empty and has no manifest.json \(it holds thesis.tex, tokenizer"
    ):
        run([corpus_folder], vocabulary_file, folder)
    (folder / "thesis.tex").unlink()
    with pytest.raises(ValueError, match=r"it holds tokenizer\)"):
        run([corpus_folder], vocabulary_file, folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--output .*file is a file"):
        run([corpus_folder], vocabulary_file, tmp_path / "file")
    with pytest.raises(ValueError, match=r"--corpus contains .*corpus\d*, which lies in --output"):
        run([corpus_folder], vocabulary_file, corpus_folder)


def test_two_runs_do_not_share_a_folder(shard_folder: Path, corpus_folder: Path, vocabulary_file: Path) -> None:
    before = digests(shard_folder)
    manifest = (shard_folder / "manifest.json").rename(shard_folder.parent / "manifest.json")
    with open(shard_folder / "UNFINISHED", "w") as mark:
        fcntl.flock(mark, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is writing to --output"):
            run([corpus_folder], vocabulary_file, shard_folder)
    (shard_folder / "UNFINISHED").unlink()
    manifest.rename(shard_folder / "manifest.json")
    assert digests(shard_folder) == before


@pytest.mark.parametrize("workers", [1, 3])
def test_bad_text_reaches_the_user(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\n\n" * 5000 + b"bad \xff\n")
    with pytest.raises(ValueError, match=r"bad.txt is not UTF-8: byte 0xff at offset 30,004 \(line 10,001\)"):
        run([corpus_folder, tmp_path / "bad.txt"], vocabulary_file, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert multiprocessing.active_children() == []
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_nothing_left_to_write(vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\u3000\n\u200b\n")
    with pytest.raises(
        ValueError,
        match="no document is left to write: dropped were 1 documents without text, 1 documents without tokens",
    ):
        run([tmp_path / "x.txt"], vocabulary_file, tmp_path / "out")


def test_all_problems_at_once(tmp_path: Path) -> None:
    settings = make_settings(
        [Path("x")],
        Path("y"),
        Path("z"),
        workers=0,
        heldout=1.0,
        shard_bytes=1,
        layout=["xml"],
        compression="lz4",
        normal_form="NFX",
        word_segmenter="scissors",
        part="3/2",
        executor="dask",
    )
    with pytest.raises(
        ValueError,
        match=r"'xml'; allowed.*'NFX'.*workers is 0.*heldout is 1.0.*shard_bytes is 1.*'lz4'; allowed.*'dask'; "
        r"allowed.*'scissors'; allowed.*part is '3/2': needs I/N",
    ):
        build_shards(settings)


@pytest.mark.parametrize("corpus", ["text.txt", []])
def test_corpus_must_be_a_list(corpus) -> None:
    with pytest.raises(ValueError, match="a list of at least one file, folder or pattern is needed"):
        build_shards(ShardSettings(corpus=CorpusSettings(arguments=corpus), tokenizer="y", output="z"))


def test_full_disk(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path, monkeypatch) -> None:
    real = os.fsync
    calls = itertools.count()

    def fsync(descriptor: int) -> None:
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(preprocess.files.os, "fsync", fsync)
    with pytest.raises(
        OSError, match=r"No space left on device: (shard|block)-0000\d.* needs .* bytes and .*out.* has .* free"
    ) as e:
        run([corpus_folder], vocabulary_file, tmp_path / "out")
    assert e.value.errno == errno.ENOSPC
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    assert "1 of 4 blocks were done already" in "\n".join(run([corpus_folder], vocabulary_file, tmp_path / "out"))
    run([corpus_folder], vocabulary_file, tmp_path / "unbroken")
    assert digests(tmp_path / "out") == digests(tmp_path / "unbroken")


SMALL_DISK = """
mount -t tmpfs -o size=200k none {disk} && {python} -m preprocess shards --corpus {corpus} --tokenizer {tokenizer} \
    --output {disk}/shards --workers 2 --shard_bytes 100000 --compression none --heldout 0
code=$?
ls {disk}/shards
exit $code
"""


def test_full_disk_with_workers(vocabulary_file: Path, tmp_path: Path, repository: Path) -> None:
    """On a real small disk, where this user may mount one."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare -rm to mount a small disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "x.txt").write_text("the cat and the dog\n" * 50_000)
    script = SMALL_DISK.format(
        disk=tmp_path / "disk", python=sys.executable, corpus=tmp_path / "x.txt", tokenizer=vocabulary_file
    )
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=repository, capture_output=True, text=True, check=False
    )
    if "mount" in done.stderr:
        pytest.skip("may not mount a small disk here")
    assert done.returncode == 2, done.stderr
    assert "error: No space left on device" in done.stderr and "free some space there" in done.stderr
    assert "Traceback" not in done.stderr
    assert "UNFINISHED" in done.stdout and "manifest.json" not in done.stdout and ".tmp" not in done.stdout


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(b"two\0", r"NUL byte at offset \d"), (b"t\xffo", r"is not UTF-8: byte 0xff"), (b"\x1f\x8b\xff", "gzip")],
)
def test_bad_text_leaves_no_output(
    corpus_folder: Path, vocabulary_file: Path, tmp_path: Path, workers: int, bad: bytes, message: str
) -> None:
    (tmp_path / "bad.txt").write_bytes(bad)
    output = tmp_path / "shards"
    inputs = [tmp_path / "bad.txt", corpus_folder]
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            run(inputs, vocabulary_file, output, workers=workers, shard_bytes=1 << 20)
        assert not output.exists()
    output.mkdir()
    with pytest.raises(ValueError, match=message):
        run(inputs, vocabulary_file, output, workers=workers, shard_bytes=1 << 20)
    assert list(output.iterdir()) == []  # the user's own folder


def processes_of_group(group: int) -> list[int]:
    """Return the processes of a process group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if len(fields) > 2 and int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_leaves_no_process_and_no_half_file(
    vocabulary_file: Path, tmp_path: Path, repository: Path, number: signal.Signals
) -> None:
    (tmp_path / "x.txt").write_text("".join(f"the cat number {n} and the dog\n\n" for n in range(400_000)))
    output = tmp_path / "shards"
    command = [sys.executable, "-m", "preprocess", "shards", "--corpus", tmp_path / "x.txt"]
    command += ["--tokenizer", vocabulary_file, "--output", output, "--workers", "2", "--shard_bytes", "200000"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=repository, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(list(output.glob("shard-*.h5"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == {signal.SIGKILL: -9}.get(number, 128 + number), error
    while processes_of_group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of_group(process.pid) == []
    assert "Traceback" not in error
    assert (output / "UNFINISHED").exists() and not (output / "manifest.json").exists()
    if number != signal.SIGKILL:
        assert not list(output.rglob("*.tmp"))


def test_a_worker_that_dies(corpus_folder: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    from preprocess.workers import run_blocks

    with pytest.raises(RuntimeError, match=r"a worker process ended by signal 9; out of memory"):
        run_blocks(DyingJob(signal.SIGKILL), range(10), 2, lambda _: None)
    with pytest.raises(RuntimeError, match=r"a worker process failed:\n(.|\n)*KeyError: 'our own mistake'"):
        run_blocks(DyingJob(None), range(10), 2, lambda _: None)
    assert multiprocessing.active_children() == []


class DyingJob:
    """A job whose second block fails."""

    def __init__(self, number: int | None) -> None:
        self.number = number

    def start(self) -> None:
        """Need nothing."""

    def run(self, state: None, block: int, progress) -> int:
        """Die, by a signal or by an exception."""
        if block == 1:
            if self.number is not None:
                os.kill(os.getpid(), self.number)
            raise KeyError("our own mistake")
        return block


def test_manifest_names_settings_and_versions(shard_folder: Path) -> None:
    settings = json.loads((shard_folder / "manifest.json").read_text())["settings"]
    assert {"tokenizers", "h5py", "hdf5"} <= settings["versions"].keys()
    assert settings["shard_bytes"] == 8000 and settings["heldout"] == 0.1 and settings["compression"] == "zstd"


def test_nothing_left_can_be_tried_again(vocabulary_file: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """Filters that leave nothing leave no folder either."""
    with pytest.raises(ValueError, match=r"no document is left to write: dropped were .* documents too short"):
        run([corpus_folder], vocabulary_file, tmp_path / "out", min_characters=100_000)
    assert not (tmp_path / "out").exists()
    run([corpus_folder], vocabulary_file, tmp_path / "out", min_characters=10)
