"""The shard folders that a run reads, found and compared with their manifests before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config.mixture import SHARE_UNIT, parse_shards, source_names
from preprocess.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER
from preprocess.tokenizer import Tokenizer, load_tokenizer

MAKE_SHARDS = """make it with
  python -m preprocess tokenizer --corpus FILE... --type wordpiece --vocab_size 30000 --output tokenizer/
  python -m preprocess shards --corpus FILE... --tokenizer tokenizer/ --output {shards}"""


@dataclass(frozen=True)
class ShardSource:
    """One of the folders whose rows a run mixes.

    Attributes:
        name: short and unlike those of the others.
        share: rows in ``SHARE_UNIT`` that come from it.
        manifest: of its training documents.
        held_out: of its held-out documents; None where there are none.
    """

    name: str
    share: int
    manifest: Manifest
    held_out: Manifest | None

    @property
    def weight(self) -> float:
        """Its part of all rows, in (0, 1]."""
        return self.share / SHARE_UNIT


def open_shards(text: str) -> tuple[tuple[ShardSource, ...], Tokenizer]:
    """Open the folders of ``data.shards``, whose tokenizer must be one.

    Returns:
        The folders by their digests, so that the order in which they are named decides nothing; and the tokenizer.

    Raises:
        ValueError: if one is missing (with the command that makes it), or parts do not belong together.
    """
    folders = parse_shards(text)
    opened = [open_folder(folder.path) for folder in folders]
    tokenizer = opened[0][2]
    for folder, (_, _, other) in zip(folders, opened, strict=True):
        if other.digest != tokenizer.digest:
            raise ValueError(
                f"data.shards: {folder.path} was made with another tokenizer ({other.digest[:12]}) than "
                f"{folders[0].path} ({tokenizer.digest[:12]}); prepare all folders of a mixture with one tokenizer"
            )
    first: dict[str, str] = {}
    for folder, (manifest, _, _) in zip(folders, opened, strict=True):
        if (other_path := first.setdefault(manifest.digest, folder.path)) != folder.path:
            raise ValueError(
                f"data.shards: {folder.path} holds the same text as {other_path}; give one of them, with both weights"
            )
    names = source_names([folder.path for folder in folders])
    sources = [
        ShardSource(name, folder.share, manifest, held_out)
        for name, folder, (manifest, held_out, _) in zip(names, folders, opened, strict=True)
    ]
    return tuple(sorted(sources, key=lambda source: source.manifest.digest)), tokenizer


def sources_digest(sources: Sequence[ShardSource]) -> str:
    """What identifies the training text: the manifest's digest, or for a mixture one of all digests and shares."""
    if len(sources) == 1:
        return sources[0].manifest.digest
    parts = [[source.share, source.manifest.digest] for source in sources]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def open_folder(path: str) -> tuple[Manifest, Manifest | None, Tokenizer]:
    """Read the manifests and the tokenizer of a shard folder, and compare the sizes of its files.

    Raises:
        ValueError: if the folder is missing (with the command that makes it) or its parts do not belong together.
    """
    folder = Path(path)
    if not (folder / MANIFEST_NAME).is_file():
        what = "holds no manifest.json" if folder.is_dir() else "does not exist"
        raise ValueError(f"data.shards {path} {what}; " + MAKE_SHARDS.format(shards=path))
    manifest = read_manifest(folder)
    held_out_folder = folder / HELDOUT_FOLDER
    held_out = read_manifest(held_out_folder) if (held_out_folder / MANIFEST_NAME).is_file() else None
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    for part in (manifest, held_out):
        if part is None:
            continue
        if part.tokenizer["digest"] != tokenizer.digest:
            raise ValueError(
                f"{part.folder} was made with another tokenizer ({part.tokenizer['digest'][:12]}...) than the one in "
                f"{folder / TOKENIZER_FOLDER} ({tokenizer.digest[:12]}); prepare the shards again with one tokenizer"
            )
        _check_sizes(part)
    return manifest, held_out if held_out and held_out.shards else None, tokenizer


def _check_sizes(manifest: Manifest) -> None:
    """A missing or truncated shard is found before the run starts; its digest is compared when it is first read."""
    for shard in manifest.shards:
        file = manifest.folder / shard.file
        size = file.stat().st_size if file.is_file() else None
        if size != shard.num_bytes:
            found = (
                "is missing" if size is None else f"is truncated or damaged: {size} bytes instead of {shard.num_bytes}"
            )
            raise ValueError(
                f"shard {file} {found}; python -m preprocess verify {manifest.folder} lists all damage; "
                "prepare the shards again or restore the file"
            )
