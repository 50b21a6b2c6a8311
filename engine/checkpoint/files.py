"""The files of a checkpoint: fragments of named tensors, and a manifest with their digests, written last.

``rank-00000.safetensors`` holds one-dimensional tensors labelled ``KIND|PARAMETER|OFFSET``: elements OFFSET and on of
the flattened PARAMETER. KIND is ``weights`` (fp32), or the name of an optimizer state (``exp_avg``). Together the
files cover every parameter once, whatever the number of ranks that wrote them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from preprocess.files import sha256_of_file, sync_to_disk

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights"


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint holds.

    Attributes:
        step: optimizer steps taken.
        shapes: shape of every parameter by name.
        optimizer: its name, step count and loss scaler; empty before the first step.
        trainer: the training loop's own state.
        files: size and sha256 of every file of tensors.
        format: version of this layout.
    """

    step: int
    shapes: dict[str, list[int]]
    optimizer: dict[str, Any]
    trainer: dict[str, Any]
    files: dict[str, dict[str, Any]]
    format: int = FORMAT


def label(kind: str, name: str, offset: int) -> str:
    """Name of a fragment in a file."""
    return f"{kind}|{name}|{offset}"


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write_text(path: Path, text: str) -> None:
    """Write a file by way of a temporary name, so that it is never seen half-written."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    sync_to_disk(temporary)
    os.replace(temporary, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write and fsync a file; returns its size and sha256."""
    save_file(dict(tensors), path)
    sync_to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def as_os_error(error: OSError | SafetensorError) -> OSError:
    """The operating system's error behind an exception of writing: safetensors has a class of its own for it.

    Raises:
        SafetensorError: the exception itself, if the operating system is not to blame.
    """
    if isinstance(error, OSError):
        return error
    code = re.search(r"\(os error (\d+)\)", str(error))
    if code is None:
        raise error
    return OSError(int(code[1]), os.strerror(int(code[1])))


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write and fsync the manifest; its presence makes the folder a checkpoint."""
    path = folder / MANIFEST
    text = json.dumps(asdict(manifest), indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    sync_to_disk(path)
    sync_to_disk(folder)


def read_manifest(folder: Path) -> CheckpointManifest:
    """Read a checkpoint's manifest and compare the sizes of its files.

    Raises:
        ValueError: if it is missing, damaged, of another format, or a file is missing or has another size.
    """
    try:
        tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if tree.get("format") != FORMAT:
            raise ValueError(f"checkpoint {folder} has format {tree.get('format')}, this version reads format {FORMAT}")
        manifest = CheckpointManifest(**tree)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {folder} has no readable {MANIFEST}: {error}") from None
    for name, expected in manifest.files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != expected["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes instead of {expected['bytes']}"
            raise ValueError(f"checkpoint {folder}: {name} {found}")
    return manifest


def verify_files(folder: Path, manifest: CheckpointManifest, names: Sequence[str] | None = None) -> None:
    """ValueError naming the first file whose sha256 is not the manifest's; all files where ``names`` is None."""
    for name in manifest.files if names is None else names:
        if sha256_of_file(folder / name) != manifest.files[name]["sha256"]:
            raise ValueError(f"checkpoint {folder}: {name} is damaged (its sha256 differs from the manifest's)")


class FragmentReader:
    """Any range of any parameter from the files of a checkpoint; only the bytes that are needed are read."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Index the files.

        Raises:
            ValueError: if a file is no safetensors file of fragments.
        """
        self._files = list(files)
        self._open: dict[int, Any] = {}
        self._pieces: dict[tuple[str, str], list[tuple[int, int, int, str]]] = {}
        for number, file in enumerate(self._files):
            try:
                with safe_open(file, "pt") as opened:
                    for piece in opened.keys():  # noqa: SIM118 (not a dict)
                        kind, name, offset = piece.split("|")
                        size = opened.get_slice(piece).get_shape()[0]
                        self._pieces.setdefault((kind, name), []).append((int(offset), size, number, piece))
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{file} is no file of a checkpoint: {error}") from None

    def kinds(self, name: str | None = None) -> set[str]:
        """Kinds of tensors there are, of one parameter or of any."""
        return {kind for kind, parameter in self._pieces if name in (None, parameter)}

    def read(self, kind: str, name: str, offset: int, size: int) -> Tensor:
        """Elements offset to offset + size of a flattened parameter: [size] fp32.

        Raises:
            ValueError: if the files do not cover the range.
        """
        result = torch.empty(size, dtype=torch.float32)
        covered = 0
        for begin, length, number, piece in self._pieces.get((kind, name), ()):
            first, last = max(begin, offset), min(begin + length, offset + size)
            if first < last:
                if number not in self._open:
                    self._open[number] = safe_open(self._files[number], "pt")
                result[first - offset : last - offset] = self._open[number].get_slice(piece)[
                    first - begin : last - begin
                ]
                covered += last - first
        if covered != size:
            raise ValueError(f"the checkpoint holds {covered} of {size} elements of {kind} of {name}")
        return result

    def full(self, kind: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Whole parameters by name, fp32."""
        return {
            name: self.read(kind, name, 0, int(torch.Size(shape).numel())).view(*shape)
            for name, shape in shapes.items()
        }
