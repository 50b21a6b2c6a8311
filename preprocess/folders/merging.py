"""Makes one shard folder out of several."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.folders.assembly import FolderPlan, ShardFolder, check_apart, read_folder, summary, write_folder
from preprocess.folders.counts import other_counts
from preprocess.folders.rewriting import Origin, Task
from preprocess.folders.verification import check_workers
from preprocess.manifest import Manifest, Source
from preprocess.manifest_fields import MAX_SOURCES
from preprocess.output_folder import HELDOUT_FOLDER, shard_name
from preprocess.shards import OPTIONAL, library_versions

OWN_SETTINGS = ("input_sha256", "versions", "merged_from", "split_from", "split_part")


def merge_folders(
    folders: Sequence[str], output: Path | str, num_workers: int = 1, say: Callable[[str], None] = print
) -> Manifest:
    """Write the documents of several shard folders, in their order, as one; return its manifest.

    Args:
        folders: each FOLDER or NAME=FOLDER, which puts NAME/ before the names of that folder's sources.
        output: new or empty folder.
        num_workers: processes; the result is the same for any number.
        say: gets lines for the user.

    Raises:
        ValueError: if the folders do not fit together, one is damaged, or ``output`` is taken.
        OSError: when the disk is full.
    """
    check_workers(num_workers)
    if len(folders) < 2:
        raise ValueError(f"merge needs at least two shard folders, and {len(folders)} was given")
    output = Path(output)
    named = [_parse(argument) for argument in folders]
    parts = [read_folder(path) for _, path in named]
    check_apart(output, [path for _, path in named])
    _check_fit(parts)
    united = _United()
    for (prefix, _), part in zip(named, parts, strict=True):
        united.add(part, prefix)
    if len(united.sources) > MAX_SOURCES:
        raise ValueError(f"the folders have {len(united.sources):,} sources together; a folder holds {MAX_SOURCES:,}")
    settings = _settings(parts, say)
    manifest = write_folder(_plan(output, parts, united, settings), num_workers)
    say(summary(manifest))
    return manifest


def _plan(output: Path, parts: list[ShardFolder], united: _United, settings: dict[str, Any]) -> FolderPlan:
    heldout: list[Task] | None = None
    if parts[0].heldout is not None:
        heldout = _tasks([part.heldout for part in parts if part.heldout], united, output / HELDOUT_FOLDER)
    present = {name for part in parts for name in part.optional}
    return FolderPlan(
        output=output,
        model=parts[0],
        kept=_tasks([part.main for part in parts], united, output),
        heldout=heldout,
        sources=united.sources,
        labels=united.labels,
        settings=settings,
        more_counts=other_counts(part.main for part in parts),
        optional=tuple(name for name in OPTIONAL if name in present),
        compression=settings["compression"],
    )


def _tasks(manifests: Sequence[Manifest], united: _United, output: Path) -> list[Task]:
    tasks: list[Task] = []
    for number, manifest in enumerate(manifests):
        origin = Origin(manifest, united.source_numbers(number, manifest), united.label_numbers[number])
        for entry in manifest.shards:
            tasks.append(Task(origin, entry, output / shard_name(len(tasks))))
    return tasks


def _parse(argument: str) -> tuple[str, Path]:
    """Return the prefix of the names of sources, and the folder; a folder may itself have a = in its name."""
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).is_dir():
        return "", Path(argument)
    if not name or not path:
        raise ValueError(f"{argument!r} is neither FOLDER nor NAME=FOLDER")
    return f"{name}/", Path(path)


def _check_fit(parts: Sequence[ShardFolder]) -> None:
    """Check that all folders have one tokenizer, and held-out documents or none."""
    first = parts[0]
    for part in parts[1:]:
        if part.main.tokenizer["digest"] != first.main.tokenizer["digest"]:
            raise ValueError(
                f"{first.main.folder} and {part.main.folder} were made with different tokenizers "
                f"({_tokenizer(first)} and {_tokenizer(part)}): their ids mean different tokens; make one of them again"
            )
        if (part.heldout is None) != (first.heldout is None):
            having, lacking = (first, part) if first.heldout else (part, first)
            raise ValueError(
                f"{having.main.folder} has held-out documents and {lacking.main.folder} has none: a document held out "
                "of one may be in the other; make one of them again with the same --heldout"
            )


def _tokenizer(part: ShardFolder) -> str:
    tokenizer = part.main.tokenizer
    return f"{tokenizer['type']}, {tokenizer['vocab_size']:,} tokens, digest {tokenizer['digest'][:16]}"


@dataclass
class _United:
    """Sources and labels of all folders, and what their numbers become."""

    sources: list[Source] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[dict[str, int]] = field(default_factory=list)  # of each folder: name there -> new number
    label_numbers: list[tuple[int, ...]] = field(default_factory=list)
    _owner: dict[str, tuple[int, Manifest]] = field(default_factory=dict)

    def add(self, part: ShardFolder, prefix: str) -> None:
        """Take in the sources and labels of the next folder."""
        numbers = {}
        for source in part.main.sources:
            renamed = dataclasses.replace(source, name=prefix + source.name)
            numbers[source.name] = self._number(renamed, part.main)
        self.names.append(numbers)
        known = {label: number for number, label in enumerate(self.labels)}
        for label in part.main.labels:
            known.setdefault(label, len(known))
        self.labels = list(known)
        self.label_numbers.append(tuple(known[label] for label in part.main.labels))

    def _number(self, source: Source, manifest: Manifest) -> int:
        """Return the new number of a source; parts of one split folder share theirs."""
        if source.name not in self._owner:
            self.sources.append(source)
            self._owner[source.name] = (len(self.sources) - 1, manifest)
            return len(self.sources) - 1
        number, owner = self._owner[source.name]
        other = self.sources[number]
        same_origin = owner is not manifest and _is_same_split(owner, manifest)
        if same_origin and (other.layout, other.files) == (source.layout, source.files):
            return number
        raise ValueError(
            f"{owner.folder} and {manifest.folder} both have a source named {source.name!r}; give NAME=FOLDER, such as "
            f"first={owner.folder} second={manifest.folder}, which puts NAME/ before the names of a folder's sources"
        )

    def source_numbers(self, number: int, manifest: Manifest) -> tuple[int, ...]:
        """Return the new number of each source of a manifest of folder ``number``."""
        unknown = [source.name for source in manifest.sources if source.name not in self.names[number]]
        if unknown:
            raise ValueError(f"{manifest.folder} has the source {unknown[0]!r}, which the folder around it lacks")
        return tuple(self.names[number][source.name] for source in manifest.sources)


def _is_same_split(one: Manifest, other: Manifest) -> bool:
    """Whether two folders are different parts of one folder that was split."""
    origins = [(manifest.settings.get("split_from"), manifest.settings.get("split_part")) for manifest in (one, other)]
    return origins[0][0] is not None and origins[0][0] == origins[1][0] and origins[0][1] != origins[1][1]


def _settings(parts: Sequence[ShardFolder], say: Callable[[str], None]) -> dict[str, Any]:
    """Return the settings on which all folders agree, and where the documents are from."""
    all_settings = [part.main.settings for part in parts]
    joint = {
        name: value
        for name, value in all_settings[0].items()
        if name not in OWN_SETTINGS and all(settings.get(name) == value for settings in all_settings)
    }
    if parts[0].heldout is not None and "heldout" not in joint:
        joint["heldout"] = [settings["heldout"] for settings in all_settings]
        say(
            f"note: the folders hold out different shares ({', '.join(map(str, joint['heldout']))}): a document that "
            "is in two of them may be held out of one alone"
        )
    digests = "\n".join(str(settings.get("input_sha256")) for settings in all_settings)
    return joint | {
        "compression": parts[0].compression,
        "input_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "merged_from": [part.main.digest for part in parts],
        "versions": library_versions(),
    }
