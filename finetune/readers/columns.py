"""Which column of a table is which: what ``--columns`` says, and a guess for the messages.

``label,text_a`` names the columns of a file whose first line is an example, in their order; ``label=sentiment`` says
what the first line, which names the columns, calls one of ours. A last ``...`` says that lines may have more columns.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config.cli import nearest

LABEL, TEXT_A, TEXT_B = "label", "text_a", "text_b"
NAMES = (LABEL, TEXT_A, TEXT_B)
ALIASES = {"text": TEXT_A, "sentence": TEXT_A}
OTHER = "other"
MORE = "..."


@dataclass(frozen=True)
class Columns:
    """What ``--columns`` says.

    Attributes:
        given: the option's value.
        order: names of all columns, for a file whose first line is an example; empty in the other form.
        renamed: our name -> the name in the file's first line; empty in the first form.
        more: whether lines may have more columns than these; they are not used.
    """

    given: str
    order: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    more: bool = False

    def rename(self, path: str, header: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, ...]:
        """Our names of the columns that a file's first line names; the others keep theirs.

        Args:
            path: the file.
            header: its first line.
            optional: columns of ours that need not be there.

        Raises:
            ValueError: if the first line does not have a name exactly once.
        """
        ours = {theirs: name for name, theirs in self.renamed.items()}
        for name, theirs in self.renamed.items():
            if (count := header.count(theirs)) != 1 and (count or name not in optional):
                found = f"has it {count} times" if count else f"has {', '.join(map(repr, header))}"
                raise ValueError(
                    f"--columns {name}={theirs}: the first line of {path} must name a column {theirs!r}, but {found}"
                    f"{'' if count else nearest(theirs, header)}"
                )
        return tuple(
            ours.get(cell) or (f"the file's {cell}" if usual_name(cell) in self.renamed else usual_name(cell))
            for cell in header
        )


def usual_name(name: str) -> str:
    """The name with aliases replaced."""
    return ALIASES.get(name, name)


def parse_columns(given: str | None, names: Sequence[str] = NAMES) -> Columns | None:
    """What ``--columns label,text_a,text_b`` or ``--columns label=sentiment,text_a=review`` says.

    Args:
        given: the option's value.
        names: columns that a task reads.

    Raises:
        ValueError: if the two forms are mixed, or a name is not one of ours or is there twice.
    """
    if given is None:
        return None
    items = [item.strip() for item in given.split(",")]
    if more := items[-1] == MORE:
        items.pop()
    if "=" not in given:
        return Columns(given, order=tuple(usual_name(item) for item in items), more=more)
    renamed: dict[str, str] = {}
    for item in items:
        name, equals, theirs = (part.strip() for part in item.partition("="))
        if not equals or not theirs:
            raise ValueError(
                f"--columns {given}: {item!r} is not OURS=THEIRS; write label=NAME,text_a=NAME with the names of the "
                "file's first line, or, where the first line is an example, all columns in their order without ="
            )
        if usual_name(name) not in names:
            allowed = ", ".join(names)
            raise ValueError(f"--columns {given}: {name!r} must be one of {allowed}{nearest(name, names)}")
        if usual_name(name) in renamed or theirs in renamed.values():
            raise ValueError(f"--columns {given}: {item!r} names a column that is named already")
        renamed[usual_name(name)] = theirs
    return Columns(given, renamed=renamed, more=more)


def guess_columns(rows: Sequence[Sequence[str]], known: Sequence[str], needed: Sequence[str]) -> tuple[str, ...] | None:
    """Guess which column is which: the label has few distinct values, the texts are long.

    Args:
        rows: the cells of some lines, as many in each.
        known: the columns' names so far; those of ours stay.
        needed: those of ours that must be there. Where the label is, a second text is looked for too.

    Returns:
        A name for each column, ``other`` where it is none of ours; None where the columns are too few, or one is needed
        that no guess knows.
    """
    names = [name if name in NAMES else OTHER for name in known]
    wanted = [name for name in needed if name not in names]
    free = [number for number, name in enumerate(names) if name == OTHER]
    if len(wanted) > len(free) or not set(wanted) <= set(NAMES):
        return None
    if LABEL in wanted:
        label = _label_column(rows, free)
        if label is None:  # nothing to go by: the usual order
            wanted += [name for name in (TEXT_B,) if name not in (*names, *wanted)]
            for number, name in zip(free, wanted, strict=False):
                names[number] = name
            return tuple(names)
        names[label] = LABEL
        free.remove(label)
    lengths = {number: sum(len(row[number]) for row in rows) for number in free}
    longest = sorted(free, key=lambda number: -lengths[number])
    texts = [name for name in wanted if name != LABEL]
    if texts == [TEXT_A] and LABEL in wanted and TEXT_B not in names and len(free) > 1:
        texts += [TEXT_B] * (2 * lengths[longest[1]] >= lengths[longest[0]])
    for number, name in zip(sorted(longest[: len(texts)]), texts, strict=True):
        names[number] = name
    return tuple(names)


def _label_column(rows: Sequence[Sequence[str]], free: Sequence[int]) -> int | None:
    """The column with the fewest and shortest values, at most half as many as rows, none empty, two if possible."""
    values = {number: {row[number].strip() for row in rows} for number in free}
    few = [number for number in free if "" not in values[number] and 2 * len(values[number]) <= len(rows)]

    def rank(number: int) -> tuple[bool, int, int]:
        return len(values[number]) < 2, len(values[number]), sum(map(len, values[number]))

    return min(few, key=rank, default=None)


def order_option(names: Sequence[str]) -> str:
    """``--columns`` for a file whose first line is an example."""
    return f"--columns {','.join(names)}"


def rename_option(header: Sequence[str], names: Sequence[str]) -> str | None:
    """``--columns`` for a file whose first line calls our columns otherwise; None where it cannot say so."""
    pairs = [
        (name, cell) for name, cell in zip(names, header, strict=True) if name in NAMES and usual_name(cell) != name
    ]
    if not pairs or any("," in cell or not cell or header.count(cell) > 1 for _, cell in pairs):
        return None
    return "--columns " + shlex.quote(",".join(f"{name}={cell}" for name, cell in pairs))
