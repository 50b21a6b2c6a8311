"""Public files in their own formats, written anew as JSON Lines with the columns of ours. Never imports torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.config.cli import nearest
from finetune.readers.table_lines import Line, format_of, read_lines
from preprocess.files import open_atomically

LABEL, INDEX = "label", "index"
NAMES_OF_LABELS = ("label", "score", "gold_label", "is_duplicate", "quality")  # a first line that names the columns
SHOWN_LINES = 10


@dataclass(frozen=True)
class PublicFile:
    """A table as its publisher lays it out.

    Attributes:
        path: within the benchmark's folder.
        columns: ours (label, text_a, text_b, index) -> its name in the first line or among a JSON object's keys, or its
            number from 0 where the first line is an example; empty for a file that the task itself reads.
        where: columns -> the value that they must have: other lines are left out, and counted.
        labels: its labels -> those that are written.
        drop: labels whose lines are left out, and counted: CLUE's "-" stands for no agreement.
        skip_bad: whether malformed lines are left out, and counted; they are errors else.
    """

    path: str
    columns: Mapping[str, str | int] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    drop: Sequence[str] = ()
    skip_bad: bool = False


@dataclass
class Converted:
    """What became of a file.

    Attributes:
        path: what the task reads.
        num_records: lines written; 0 of a file that the task itself reads.
        notes: what was left out.
    """

    path: Path
    num_records: int = 0
    notes: tuple[str, ...] = ()


def find(folder: Path, files: Sequence[PublicFile]) -> PublicFile | None:
    """The first of several layouts whose file is there."""
    return next((file for file in files if (folder / file.path).is_file()), None)


def source_digest(folder: Path, file: PublicFile) -> str:
    """sha256 (hex) of how a public file is read, and of its bytes."""
    digest = hashlib.sha256(json.dumps(asdict(file), sort_keys=True).encode())
    with open(folder / file.path, "rb") as source:
        digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def convert(folder: Path, file: PublicFile, output: Path) -> Converted:
    """Write a public file as JSON Lines; one that the task itself reads stays where it is.

    Args:
        folder: of the benchmark.
        file: in it.
        output: the file to write.

    Raises:
        ValueError: naming file and line of what cannot be read.
    """
    source = folder / file.path
    if not file.columns:
        return Converted(source)
    output.parent.mkdir(parents=True, exist_ok=True)
    left_out = {"other": 0, "dropped": 0}
    bad: list[int] = []
    count = 0
    with open_atomically(output) as written:
        for record in _records(source, file, bad):
            if any(record[name] != value for name, value in file.where.items()):
                left_out["other"] += 1
            elif record.get(LABEL) in file.drop:
                left_out["dropped"] += 1
            else:
                if LABEL in record:
                    record[LABEL] = file.labels.get(record[LABEL], record[LABEL])
                kept = {name: text for name, text in record.items() if name not in file.where}
                written.write((json.dumps(kept, ensure_ascii=False) + "\n").encode())
                count += 1
        if not count:
            raise ValueError(f"{source} holds no examples")
    return Converted(output, count, tuple(_notes(source, file, left_out, bad)))


def _notes(source: Path, file: PublicFile, left_out: Mapping[str, int], bad: Sequence[int]) -> Iterator[str]:
    if left_out["other"]:
        wanted = ", ".join(f"{name} {value}" for name, value in file.where.items())
        yield f"{source}: {left_out['other']:,} lines are not of {wanted} and left out"
    if left_out["dropped"]:
        yield f"{source}: {left_out['dropped']:,} lines have the label {' or '.join(file.drop)} and are left out"
    if bad:
        shown = ", ".join(map(str, bad[:SHOWN_LINES])) + ", ..." * (len(bad) > SHOWN_LINES)
        yield f"{source}: {len(bad):,} malformed lines are left out: {shown}"


def _records(source: Path, file: PublicFile, bad: list[int]) -> Iterator[dict[str, str]]:
    """The records of a file with our names of their columns; numbers of malformed lines go to ``bad``."""
    kind, _ = format_of(str(source))
    wanted: dict[str, str | int] = {**file.columns, **{name: name for name in file.where}}
    numbered = any(isinstance(column, int) for column in wanted.values())
    header: list[str] | None = None
    for line in read_lines(str(source), kind):
        problem = line.problem or ("it is not UTF-8" if line.bad_byte >= 0 else "")
        if not problem and kind == "jsonl":
            values = dict(zip(line.keys, map(_joined, line.cells), strict=True))
        elif not problem and numbered:
            values = {str(number): cell for number, cell in enumerate(line.cells)}
            if line.number == 1 and _names_columns(file, line):
                continue
        elif not problem:
            if header is None:
                header = [cell.strip() for cell in line.cells]
                _check_header(source, wanted, header)
                continue
            values = dict(zip(header, line.cells, strict=False))
            if len(line.cells) != len(header):
                problem = f"{len(line.cells)} columns, but its first line names {len(header)}"
        if not problem:
            missing = [column for column in wanted.values() if str(column) not in values]
            problem = f"there is no column {missing[0]}" if missing else ""
        if not problem:
            yield {name: values[str(column)] for name, column in wanted.items()}
        elif file.skip_bad:
            bad.append(line.number)
        else:
            raise ValueError(f"{source}, line {line.number:,}: {problem}")


def _joined(cell: str) -> str:
    """The texts of a JSON list as one, such as the keywords of CSL."""
    if not cell.startswith('["'):
        return cell
    try:
        return "；".join(map(str, json.loads(cell)))
    except ValueError:
        return cell


def _names_columns(file: PublicFile, line: Line) -> bool:
    """Whether a first line names the columns, where most files of the kind begin with an example."""
    column = file.columns.get(LABEL)
    return (
        isinstance(column, int) and column < len(line.cells) and line.cells[column].strip().lower() in NAMES_OF_LABELS
    )


def _check_header(source: Path, wanted: Mapping[str, str | int], header: Sequence[str]) -> None:
    missing = [str(column) for column in wanted.values() if column not in header]
    if missing:
        raise ValueError(
            f"{source}: its first line must name a column {missing[0]!r}, but has {', '.join(map(repr, header))}"
            f"{nearest(missing[0], header)}"
        )
