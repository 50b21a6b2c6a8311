"""Parts of one folder that read different text are refused; equal text with other times is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.preprocess.building.command_line import CommandLine, digests, records, write_text

BLOCKS = ("--shard_bytes", "20000")
HOUR_NS = 3600 * 10**9


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of two files, of about 10 blocks each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for seed, name in enumerate("ab"):
        write_text(folder / f"{name}.txt", 1000, seed)
    return folder


@pytest.fixture
def run(texts: Path, vocabulary_file: Path, tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path, [texts], vocabulary_file, *BLOCKS)


def edit(path: Path, at: float, keep_time: bool = False) -> None:
    """Change a letter, so that the size stays."""
    data = bytearray(path.read_bytes())
    place = data.index(b"x", int(at * len(data)))
    data[place] = ord("z")
    before = path.stat()
    path.write_bytes(data)
    time = before.st_mtime_ns if keep_time else before.st_mtime_ns + HOUR_NS
    os.utime(path, ns=(time, time))


def touch(path: Path) -> None:
    """Give a file the time of a copy."""
    time = path.stat().st_mtime_ns + HOUR_NS
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize("options", [(), ("--deduplicate", "documents")])
def test_a_file_edited_between_parts(run: CommandLine, texts: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    output = tmp_path / "out"
    run.run(output, *options, "--part", "1/2")
    done = {path.name: path.read_bytes() for path in records(output)}
    whole = (texts / "b.txt").read_bytes()
    edit(texts / "b.txt", 0.9 if options else 0.07)
    for part in ("2/2", "1/2"):
        said = run.run(output, *options, "--part", part, code=2)
        assert "holds an unfinished run of other text: texts/b.txt changed since another part read it" in said
        assert "texts/a.txt" not in said.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in records(output)} == done
    (texts / "b.txt").write_bytes(whole)  # as it was, but for its time
    touch(texts / "b.txt")
    said = run.run(output, *options, "--part", "2/2")
    assert "note: texts/b.txt has another time of change than in other parts, and equal text" in said
    run.finish(output)
    run.run(tmp_path / "whole", *options)
    assert digests(output) == digests(tmp_path / "whole")


def test_an_edited_file_with_its_old_time(run: CommandLine, texts: Path, tmp_path: Path) -> None:
    run.run(tmp_path / "out", "--part", "1/2")
    edit(texts / "a.txt", 0.0, keep_time=True)
    assert "texts/a.txt changed since another part" in run.run(tmp_path / "out", "--part", "2/2", code=2)


def test_a_run_without_part_takes_the_change_in(run: CommandLine, texts: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run.run(output, "--part", "1/2")
    edit(texts / "b.txt", 0.9)
    run.run(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


def test_copies_on_other_machines(vocabulary_file: Path, texts: Path, tmp_path: Path) -> None:
    """Each part has its own copy: other paths, other times, equal bytes; the manifest tells of neither."""
    output = tmp_path / "out"
    for part in (1, 2, 3):
        copy = tmp_path / f"node-{part}" / "texts"
        copy.mkdir(parents=True)
        for path in texts.iterdir():
            shutil.copy(path, copy)
            os.utime(copy / path.name, ns=(HOUR_NS * part, HOUR_NS * part))
        run = CommandLine(tmp_path, [copy], vocabulary_file, *BLOCKS)
        run.run(output, "--part", f"{part}/3")
    shutil.rmtree(tmp_path / "node-1")
    said = run.finish(output)
    assert "note: parts saw texts/a.txt, texts/b.txt with different times of change, and it cannot be read here" in said
    CommandLine(tmp_path, [texts], vocabulary_file, *BLOCKS).run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")
    for manifest in output.rglob("manifest.json"):
        text = manifest.read_text()
        assert str(tmp_path) not in text and "modified_ns" not in text and str(HOUR_NS) not in text


def test_finish_reads_again_what_parts_saw_with_several_times(
    vocabulary_file: Path, texts: Path, tmp_path: Path
) -> None:
    """Parts that began at the same time on machines whose copies differ in a byte could not see each other's."""
    run = CommandLine(tmp_path, [texts], vocabulary_file, *BLOCKS)
    output, other = tmp_path / "out", tmp_path / "other"
    run.run(output, "--part", "1/2")
    edit(texts / "b.txt", 0.87)  # in block 24, of the first part
    run.run(other, "--part", "2/2")
    for path in (*records(other), *other.glob("shard-*.h5")):
        shutil.copy(path, output / path.relative_to(other))
    for path in (other / "heldout").glob("shard-*.h5"):
        shutil.copy(path, output / "heldout")
    said = run.finish(output, code=2)
    assert f"error: {output} holds blocks of different text: texts/b.txt changed between the parts" in said
    assert not (output / "manifest.json").exists()
    run.run(output)
    run.run(tmp_path / "whole")
    assert digests(output) == digests(tmp_path / "whole")


DUMP = """<mediawiki>
  <siteinfo><namespaces><namespace key="6" case="first-letter">{name}</namespace></namespaces></siteinfo>
{pages}</mediawiki>
"""
PAGE = """  <page>
    <title>the dog {number}</title>
    <ns>0</ns>
    <revision><text xml:space="preserve">a [[Bild:x.png|token]] cat number {number}</text></revision>
  </page>
"""


@pytest.mark.parametrize("options", [(), ("--deduplicate", "documents")])
def test_the_head_of_a_dump_decides_all_its_pages(
    vocabulary_file: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """Names of namespaces say which links are pictures, in blocks far from where they are listed."""
    pytest.importorskip("mwparserfromhell", reason="dumps need mwparserfromhell")
    dump = tmp_path / "a.xml"
    pages = "".join(PAGE.format(number=number) for number in range(300))
    dump.write_text(DUMP.format(name="File", pages=pages))
    run = CommandLine(tmp_path, [dump], vocabulary_file, *BLOCKS, *options)
    output = tmp_path / "out"
    run.run(output, "--part", "2/2")
    dump.write_text(DUMP.format(name="Bild", pages=pages))
    run.run(output)
    run.run(tmp_path / "fresh")
    assert digests(output) == digests(tmp_path / "fresh")
    versions = json.loads((output / "manifest.json").read_text())["settings"]["versions"]
    assert "mwparserfromhell" in versions
