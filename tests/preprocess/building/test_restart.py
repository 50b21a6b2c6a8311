"""A run that is stopped in any way goes on with the same command, and gives the bytes of an unbroken one."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.preprocess.building.command_line import (
    SECONDS,
    CommandLine,
    digests,
    records,
    stop,
    times_of_shards,
    wait_for,
    workers_of,
    write_text,
)

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find worker processes")

BLOCKS = ("--shard_bytes", "60000")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 40 blocks of text."""
    return write_text(tmp_path_factory.mktemp("text") / "a.txt")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, text: Path, vocabulary_file: Path) -> dict[str, str]:
    """Digests of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    CommandLine(folder, [text], vocabulary_file, *BLOCKS).run(folder / "out")
    return digests(folder / "out")


def assert_goes_on(run: CommandLine, output: Path, *options: str, workers: int = 2) -> str:
    """Run the command again: what was done stays as it is, and nothing of the unfinished run is left."""
    done = {json.loads(path.read_text())["block"] for path in records(output)}
    before = {name: time for name, time in times_of_shards(output).items() if number(name) in done}
    assert before
    said = run.run(output, *options, workers=workers)
    assert f"{len(done):,} of " in said and "blocks were done already" in said
    after = times_of_shards(output)
    assert {name: after[name] for name in before} == before
    assert not (output / "UNFINISHED").exists() and not (output / ".work").exists()
    assert not list(output.rglob("*.tmp"))
    return said


def number(name: str) -> int:
    return int(Path(name).stem.removeprefix("shard-"))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [(2, 1), (1, 3)])
def test_all_processes_are_stopped(
    text: Path,
    vocabulary_file: Path,
    tmp_path: Path,
    unbroken: dict[str, str],
    signal_number: signal.Signals,
    workers: tuple[int, int],
) -> None:
    run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    process = run.start(output, workers=workers[0])
    said = stop(process, signal_number, output)
    if signal_number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    elif signal_number == signal.SIGINT or workers[0] == 1:
        assert process.returncode == 128 + signal_number
        assert said.endswith("stopped; the same command goes on where it was\n")
    else:  # the end of a worker may be seen first
        assert process.returncode in (1, 128 + signal_number)
    assert "Traceback" not in said
    assert (output / "UNFINISHED").exists()
    assert_goes_on(run, output, workers=workers[1])
    assert digests(output) == unbroken


def test_ctrl_c_while_workers_start(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS)
    process = run.start(tmp_path / "out", workers=4)
    wait_for("workers", lambda: workers_of(process), process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 130
    assert "Traceback" not in said and said.endswith("stopped; the same command goes on where it was\n")


def test_one_worker_is_killed(text: Path, vocabulary_file: Path, tmp_path: Path, unbroken: dict[str, str]) -> None:
    run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    process = run.start(output)
    wait_for("3 blocks", lambda: len(records(output)) >= 3, process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 1
    assert "error: a worker process ended by signal 9; out of memory?" in said and "Traceback" not in said
    assert not list(output.rglob("*.tmp")) and not (output / "manifest.json").exists()
    assert_goes_on(run, output)
    assert digests(output) == unbroken


@pytest.mark.parametrize(
    "options",
    [
        ("--deduplicate", "documents"),
        ("--deduplicate", "sentences", "--min_characters", "150"),
        ("--word_segmenter", "rjieba", "--invalid_utf8", "drop"),
    ],
)
def test_with_cleaning(text: Path, vocabulary_file: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    if "rjieba" in options:
        pytest.importorskip("rjieba", reason="word segmentation needs rjieba")
    results = []
    for name in ("unbroken", "broken"):
        dropped = tmp_path / f"{name}.jsonl"
        run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS, *options, "--dropped", str(dropped))
        output = tmp_path / name
        if name == "unbroken":
            said = run.run(output)
        else:
            stop(run.start(output), signal.SIGKILL, output)
            assert not dropped.exists()
            said = assert_goes_on(run, output)
        results.append(
            (digests(output), dropped.read_text(), [line for line in said.splitlines() if "dropped" in line])
        )
    assert results[0] == results[1]
    assert ("--deduplicate" in options) == bool(results[0][1])


def test_killed_while_duplicates_are_found(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS, "--deduplicate", "sentences")
    output = tmp_path / "out"
    process = run.start(output)
    pass_1 = output / ".work" / "digests"
    wait_for("digests", lambda: len(list(pass_1.glob("*.npy"))) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert not records(output)
    done = {path.name: path.stat().st_mtime_ns for path in pass_1.glob("*.npy")}
    assert "no such file or folder" in CommandLine(tmp_path, ["nowhere"], vocabulary_file).run(output, code=2)
    assert done.keys() <= {path.name for path in pass_1.glob("*.npy")}  # a slip of the pen costs nothing
    process = run.start(output)
    stop(process, signal.SIGKILL, output)
    assert {path.name: path.stat().st_mtime_ns for path in pass_1.glob("*.npy")}.items() >= done.items()
    assert_goes_on(run, output)
    run.run(tmp_path / "unbroken")
    assert digests(output) == digests(tmp_path / "unbroken")


def test_compressed_input(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.read_bytes()))
    run = CommandLine(tmp_path, [tmp_path / "a.txt.gz"], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output)
    assert_goes_on(run, output)
    run.run(tmp_path / "unbroken")
    assert digests(output) == digests(tmp_path / "unbroken")


@pytest.fixture
def stopped(text: Path, vocabulary_file: Path, tmp_path: Path) -> tuple[CommandLine, Path]:
    """A command, and the output of its run that was killed when it had done at least three blocks."""
    shutil.copy(text, tmp_path / "a.txt")
    run = CommandLine(tmp_path, [tmp_path / "a.txt"], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output, num_blocks=5)
    return run, output


def test_damaged_and_lost_files(stopped: tuple[CommandLine, Path], unbroken: dict[str, str]) -> None:
    run, output = stopped
    done = records(output)
    blocks = [json.loads(path.read_text())["block"] for path in done]
    damaged, lost, half = (output / f"shard-{block:05d}.h5" for block in blocks[:3])
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    lost.unlink()
    done[2].write_bytes(done[2].read_bytes()[:50])
    times = times_of_shards(output)
    said = run.run(output)
    assert f"2 finished blocks lack a file, or it is damaged ({damaged.name}, {lost.name})" in said
    assert f"{len(done) - 3} of " in said
    after = times_of_shards(output)
    assert after[damaged.name] != times[damaged.name] and after[half.name] != times[half.name]
    assert all(after[f"shard-{block:05d}.h5"] == times[f"shard-{block:05d}.h5"] for block in blocks[3:])
    assert digests(output) == unbroken


def test_damaged_plan(stopped: tuple[CommandLine, Path]) -> None:
    run, output = stopped
    (output / ".work" / "plan.json").write_text("{")
    assert "plan.json is damaged" in run.run(output, code=2)
    assert records(output)


def test_lost_plan(stopped: tuple[CommandLine, Path], unbroken: dict[str, str]) -> None:
    """Without the plan nobody knows what the blocks were made of."""
    run, output = stopped
    (output / ".work" / "plan.json").unlink()
    assert "were done already" not in run.run(output)
    assert digests(output) == unbroken


def test_same_size_other_text(stopped: tuple[CommandLine, Path], tmp_path: Path) -> None:
    run, output = stopped
    num_done = len(records(output))
    path = tmp_path / "a.txt"
    data = bytearray(path.read_bytes())
    data[data.index(b"x")] = ord("z")
    path.write_bytes(data)
    said = run.run(output)
    assert "note: 1 finished blocks do not fit the text any more (a.txt) and are made again" in said
    assert f"{num_done - 1} of " in said
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")


def test_longer_text(stopped: tuple[CommandLine, Path], tmp_path: Path) -> None:
    run, output = stopped
    with open(tmp_path / "a.txt", "a") as file:
        file.write("\n\nthe cat\n" * 20_000)
    said = run.run(output)
    assert "the inputs have changed: a/a.txt was " in said and " bytes of sentence_per_line and is " in said
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")


def folder_run(tmp_path: Path, vocabulary_file: Path, *options: str) -> tuple[CommandLine, Path, Path]:
    """A killed run over a folder of three files."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed, name in enumerate("bdf"):
        write_text(folder / f"{name}.txt", 3000, seed)
    run = CommandLine(tmp_path, [folder], vocabulary_file, *BLOCKS, *options)
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output, num_blocks=6)
    return run, folder, output


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ("first", ()),
        ("last", ()),
        ("gone", ("--deduplicate", "documents")),
        ("renamed", ("--deduplicate", "documents")),
        ("smaller", ()),
    ],
)
def test_files_come_and_go(tmp_path: Path, vocabulary_file: Path, change: str, options: tuple[str, ...]) -> None:
    run, folder, output = folder_run(tmp_path, vocabulary_file, *options)
    if change in ("first", "last"):
        name = {"first": "a.txt", "last": "z.txt"}[change]
        write_text(folder / name, 1000, 9)
        message = f"texts/{name} is new"
    elif change == "gone":
        (folder / "f.txt").unlink()
        message = "texts/f.txt is gone"
    elif change == "renamed":
        (folder / "b.txt").rename(folder / "c.txt")
        message = "texts/b.txt is gone, texts/c.txt is new"
    else:
        write_text(folder / "d.txt", 100, 5)
        message = "texts/d.txt was "
    said = run.run(output)
    assert "since the run was stopped the inputs have changed: " in said and message in said
    if change == "last" and not options:
        assert "blocks were done already" in said
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")


def test_files_in_another_order(tmp_path: Path, vocabulary_file: Path) -> None:
    files = [write_text(tmp_path / f"{name}.txt", 4000, seed) for seed, name in enumerate("ab")]
    output = tmp_path / "out"
    run = CommandLine(tmp_path, files, vocabulary_file, *BLOCKS)
    stop(run.start(output), signal.SIGKILL, output)
    run = CommandLine(tmp_path, files[::-1], vocabulary_file, *BLOCKS)
    assert "the files come in another order" in run.run(output)
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")


@pytest.mark.parametrize("options", [(), ("--deduplicate", "documents")])
def test_another_layout(tmp_path: Path, vocabulary_file: Path, options: tuple[str, ...]) -> None:
    run, _, output = folder_run(tmp_path, vocabulary_file, *options)
    other = ("--layout", "document_per_file")
    assert "bytes of sentence_per_line and is" in run.run(output, *other)
    run.run(tmp_path / "fresh", *other)
    assert digests(output) == digests(tmp_path / "fresh")


def test_new_labels_renumber_the_old(tmp_path: Path, vocabulary_file: Path) -> None:
    """Blocks that are done hold numbers of labels, which a further file may shift."""
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [f"{label}\tthe cat and the dog number {n}\n" for n in range(20_000) for label in ("m", "x")]
    (folder / "a.tsv").write_text("label\ttext_a\n" + "".join(lines))
    run = CommandLine(tmp_path, [folder], vocabulary_file, *BLOCKS, "--layout", "labelled_tsv")
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output)
    (folder / "b.tsv").write_text("label\ttext_a\n" + "c\tthe dog\n" * 50 + "x\tthe cat\n" * 50)
    said = run.run(output)
    assert "all blocks are made again: the documents have other labels or second texts than before" in said
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")
    assert json.loads((output / "manifest.json").read_text())["labels"] == ["c", "m", "x"]


def test_changed_settings_are_named(stopped: tuple[CommandLine, Path], tmp_path: Path, vocabulary_file: Path) -> None:
    run, output = stopped
    before = digests(output)
    other = tmp_path / "other.txt"
    other.write_text(vocabulary_file.read_text() + "cats\n")
    changes = [
        (("--tokenizer", str(other)), "tokenizer was "),
        (("--heldout", "0.2"), "heldout was 0.01 and is 0.2"),
        (("--shard_bytes", "70000"), "shard_bytes was 60000 and is 70000"),
        (("--compression", "gzip"), "compression was zstd and is gzip"),
        (("--normal_form", "NFKC"), "normal_form was none and is NFKC"),
        (("--drop_matching", "x+", "y"), "drop_matching was off and is ['x+', 'y']"),
        (("--deduplicate", "sentences"), "deduplicate was none and is sentences"),
        (("--split_sentences", "false"), "split_sentences was True and is False"),
        (("--word_segmenter", "rjieba"), "word_segmenter was off and is rjieba 0."),
    ]
    for options, message in changes:
        said = run.run(output, *options, code=2)
        assert f"{output} holds an unfinished run made differently: " in said and message in said
        assert f"give the command as it was to go on, or delete {output} to start again" in said
    after = digests(output)
    assert {name: after[name] for name in before if not name.endswith(".tmp")} == {
        name: digest for name, digest in before.items() if not name.endswith(".tmp")
    }


@pytest.mark.parametrize("way", ["drop", "replace"])
def test_bad_bytes_then_another_choice(tmp_path: Path, vocabulary_file: Path, way: str) -> None:
    path = write_text(tmp_path / "a.txt", 4000)
    data = path.read_bytes()
    path.write_bytes(data + b"\n\nbad \xff byte\n\n" + data)
    run = CommandLine(tmp_path, [path], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    assert "a.txt is not UTF-8: byte 0xff" in run.run(output, code=2)
    assert_goes_on(run, output, "--invalid_utf8", way)
    run.run(tmp_path / "fresh", "--invalid_utf8", way)
    assert digests(output) == digests(tmp_path / "fresh")
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    assert counts.get("dropped_documents_invalid_utf8", 0) == (way == "drop")


def test_incomplete_records_then_another_choice(tmp_path: Path, vocabulary_file: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.dumps({"text": "some words of a text"}) + "\n"
    path.write_text(row * 9000 + '{"body": "x"}\n' + row * 2000)
    run = CommandLine(tmp_path, [path], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    assert "line 9,001" in run.run(output, code=2)
    assert_goes_on(run, output, "--incomplete_records", "drop")
    run.run(tmp_path / "fresh", "--incomplete_records", "drop")
    assert digests(output) == digests(tmp_path / "fresh")
    counts = json.loads((output / "manifest.json").read_text())["counts"]
    assert counts["dropped_documents_incomplete_records"] == 1


def test_dropped_is_asked_for_later(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    """Blocks that were done without it are made again: the file tells of every drop."""
    run = CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS, "--min_characters", "200")
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output)
    run.run(output, "--dropped", str(tmp_path / "late.jsonl"))
    run.run(tmp_path / "fresh", "--dropped", str(tmp_path / "fresh.jsonl"))
    assert (tmp_path / "late.jsonl").read_text() == (tmp_path / "fresh.jsonl").read_text() != ""
    said = run.run(output, "--dropped", str(tmp_path / "never.jsonl"))
    assert "never.jsonl is written only while shards are made" in said and not (tmp_path / "never.jsonl").exists()
