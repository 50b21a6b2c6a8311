"""Several runs share one output folder with --part I/N, and ``finish`` seals it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
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
    write_text,
)

BLOCKS = ("--shard_bytes", "60000")
DUPLICATES = ("--deduplicate", "documents", "--min_characters", "100")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 40 blocks of text."""
    return write_text(tmp_path_factory.mktemp("text") / "a.txt")


@pytest.fixture
def run(text: Path, vocabulary_file: Path, tmp_path: Path) -> CommandLine:
    """The command without --part."""
    return CommandLine(tmp_path, [text], vocabulary_file, *BLOCKS)


def paused(run: CommandLine, output: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run and stop its clock when it is at work on its blocks."""
    process = run.start(output, *options, workers=1)
    wait_for("a block", lambda: records(output), process)
    process.send_signal(signal.SIGSTOP)
    return process


def go_on(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 0, said


@pytest.mark.parametrize(("options", "order"), [((), (1, 2, 3)), (DUPLICATES, (3, 1, 2))])
def test_one_after_the_other(
    run: CommandLine, tmp_path: Path, options: tuple[str, ...], order: tuple[int, ...]
) -> None:
    told = []
    for name in ("whole", "parts"):
        output = tmp_path / name
        dropped = ("--dropped", str(tmp_path / f"{name}.jsonl")) if options else ()
        if name == "whole":
            told.append(run.run(output, *options, *dropped))
        else:
            for part in order:
                said = run.run(output, *options, *dropped, "--part", f"{part}/3")
                assert f"part {part}/3 of {output} is done; when all parts are: python -m preprocess finish" in said
                assert not (output / "manifest.json").exists() and (output / "UNFINISHED").exists()
            told.append(run.finish(output))
    assert digests(tmp_path / "whole") == digests(tmp_path / "parts")
    for line in told[1].replace("parts", "whole").splitlines():
        assert line in told[0]
    if options:
        assert (tmp_path / "whole.jsonl").read_text() == (tmp_path / "parts.jsonl").read_text() != ""
        counts = json.loads((tmp_path / "parts" / "manifest.json").read_text())["counts"]
        assert counts["dropped_documents_duplicate"] > 100
    assert f"{tmp_path / 'parts'} is complete already; nothing to do" in run.finish(tmp_path / "parts")
    assert "is complete: the same settings and inputs made it" in run.run(tmp_path / "parts", *options)
    assert "is complete: the same settings" in run.run(tmp_path / "parts", *options, "--part", "2/3")


@pytest.mark.parametrize("attempt", range(2))
def test_at_the_same_time(run: CommandLine, tmp_path: Path, attempt: int) -> None:
    """All find the duplicates of all blocks, so they write the same files of digests, and the same tokenizer."""
    output = tmp_path / "parts"
    processes = [run.start(output, *DUPLICATES, "--part", f"{part}/4", workers=1) for part in (1, 2, 3, 4)]
    for process in processes:
        said = process.communicate(timeout=SECONDS)[0]
        assert process.returncode == 0, said
    run.finish(output)
    run.run(tmp_path / "whole", *DUPLICATES)
    assert digests(output) == digests(tmp_path / "whole")


def test_more_parts_than_blocks(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    run = CommandLine(tmp_path, [text], vocabulary_file, "--shard_bytes", "2000000")
    for part in (1, 2, 3, 4):
        run.run(tmp_path / "parts", "--part", f"{part}/4")
    run.finish(tmp_path / "parts")
    run.run(tmp_path / "whole")
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_finish_too_early(run: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert f"error: {output} holds no unfinished shards" in run.finish(output, code=2)
    run.run(output, "--part", "2/2")
    said = run.finish(output, code=2)
    assert " blocks are missing (0, 2, 4, 6, 8, 10, 12, 14, ...); run the parts that were not run to their end" in said
    run.run(output, "--part", "1/2")
    lost = output / "shard-00003.h5"
    data = lost.read_bytes()
    lost.unlink()
    assert "1 of " in (said := run.finish(output, code=2)) and "blocks are missing (3)" in said
    lost.write_bytes(data)
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


def test_who_may_work_at_the_same_time(run: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = paused(run, output, "--part", "1/2")
    busy = f"error: another run is writing to --output {output} now; wait for it"
    assert busy in run.finish(output, code=2)
    assert busy in run.run(output, code=2)
    assert f"part 1/2 of {output} is being made by another run now" in run.run(output, "--part", "1/2", code=2)
    assert "part 1/2 of " in (said := run.run(output, "--part", "2/3", code=2))
    assert "need the same number of parts, and this one is 2/3" in said
    run.run(output, "--part", "2/2")
    go_on(process)
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


def test_a_whole_run_keeps_parts_out(run: CommandLine, tmp_path: Path) -> None:
    process = paused(run, tmp_path / "out")
    assert "another run is writing to --output" in run.run(tmp_path / "out", "--part", "1/2", code=2)
    go_on(process)


def test_killed_part_goes_on(run: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run.run(output, "--part", "2/2")
    others = times_of_shards(output)
    process = run.start(output, "--part", "1/2")
    wait_for("blocks", lambda: (output / ".work" / "block-00004.json").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert "blocks were done already" in run.run(output, "--part", "1/2")
    assert times_of_shards(output).items() >= others.items()
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


@pytest.mark.parametrize("options", [(), DUPLICATES])
def test_run_without_part_completes(run: CommandLine, tmp_path: Path, options: tuple[str, ...]) -> None:
    output = tmp_path / "out"
    run.run(output, *options, "--part", "2/3")
    before = times_of_shards(output)
    assert "blocks were done already" in run.run(output, *options)
    assert times_of_shards(output).items() >= before.items()
    run.run(tmp_path / "whole", *options)
    assert digests(output) == digests(tmp_path / "whole")


def test_parts_may_change_in_number(run: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run.run(output, "--part", "2/3")
    for part in ("1/2", "2/2"):
        assert "blocks were done already" in run.run(output, "--part", part)
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


def test_parts_that_differ_are_refused(text: Path, vocabulary_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(text.read_bytes())
    run = CommandLine(tmp_path, [folder], vocabulary_file, *BLOCKS)
    output = tmp_path / "out"
    run.run(output, "--part", "1/2")
    before = digests(output)
    other = tmp_path / "other.txt"
    other.write_text(vocabulary_file.read_text() + "cats\n")
    dropped = str(tmp_path / "dropped.jsonl")
    for options, message in [
        (("--heldout", "0.5"), "heldout was 0.01 and is 0.5"),
        (("--tokenizer", str(other)), "tokenizer was "),
        (("--simplify", "true"), "simplify was False and is True"),
        (("--dropped", dropped), f"dropped was off and is {dropped}"),
    ]:
        said = run.run(output, *options, "--part", "2/2", code=2)
        assert "holds an unfinished run made differently: " in said and message in said
    write_text(folder / "b.txt", 10)
    assert "the inputs have changed: texts/b.txt is new" in run.run(output, "--part", "2/2", code=2)
    after = digests(output)
    assert {name: after[name] for name in before if "lock" not in name} == {
        name: digest for name, digest in before.items() if "lock" not in name
    }
    (folder / "b.txt").unlink()
    run.run(output, "--part", "2/2")
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


def test_what_cannot_be_divided(run: CommandLine, vocabulary_file: Path, tmp_path: Path) -> None:
    said = CommandLine(tmp_path, ["-"], vocabulary_file).run(tmp_path / "out", "--part", "1/2", code=2)
    assert "error: standard input cannot be split over parts; write it to a file that all of them can read" in said
    for part in ("0/2", "3/2", "1", "one/two", "-1/2"):
        assert f"part is '{part}': needs I/N with I from 1 to N" in run.run(tmp_path / "out", f"--part={part}", code=2)
    assert "give one of them" in run.run(tmp_path / "out", "--part", "1/2", "--executor", "ray", code=2)
    assert not (tmp_path / "out").exists()


def test_whole_run_stopped_then_parts(run: CommandLine, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stop(run.start(output), signal.SIGKILL, output)
    for part in (2, 1):
        run.run(output, "--part", f"{part}/2")
    run.finish(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")
