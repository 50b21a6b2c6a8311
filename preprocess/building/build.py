"""Makes a shard folder out of a corpus: blocks to workers, records to manifests, going on where a run was stopped."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from preprocess.building.duplicates import mark_duplicates
from preprocess.building.job import ShardJob
from preprocess.building.manifests import summary, write_manifests
from preprocess.building.plan import input_differences, make_plan, setting_differences, version_differences
from preprocess.building.recognition import recognise
from preprocess.building.resume import keep_what_fits
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, WorkFolder, digest_of_file
from preprocess.corpus.corpus import Corpus
from preprocess.corpus.inputs import open_corpus
from preprocess.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, UNFINISHED_NAME, claim
from preprocess.progress import progress_bar
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.workers import run_blocks

MAX_NAMED_BLOCKS = 8
Say = Callable[[str], None]


def build_shards(settings: ShardSettings, say: Say = print) -> Manifest | None:
    """Make a shard folder, go on with an unfinished one, or recognise that it is complete already.

    Args:
        say: gets lines for the user.

    Returns:
        Its manifest; None for a part of it (``settings.part``), which ``finish_shards`` completes.

    Raises:
        ValueError: for whatever the user can correct: settings, inputs, tokenizer, the output folder.
        OSError: when the disk is full.
        RuntimeError: when a worker dies.
    """
    if problems := settings.problems():
        raise ValueError("; ".join(problems))
    output = Path(settings.output)
    tokenizer = load_tokenizer(settings.tokenizer, settings.lowercase)
    _check_output_apart(output, settings.corpus.arguments)
    for line in tokenizer.notes:
        say(line)
    if (output / MANIFEST_NAME).is_file():
        with tempfile.TemporaryDirectory(prefix="shards-") as spool:
            corpus = _open(settings, Path(spool), output, say)
            return recognise(read_manifest(output), settings, tokenizer, corpus, say)
    with claim(output, resume=True, shared=settings.part is not None), _part_lock(settings, output):
        work = WorkFolder(output)
        work.make()
        corpus = _open(settings, work.spool, output, say)
        plan = _agree_on_plan(settings, make_plan(settings, corpus, tokenizer), work, say)
        _run(settings, corpus, tokenizer, work, say)
        if settings.part is not None:
            say(f"part {settings.part} of {output} is done; when all parts are: python -m preprocess finish {output}")
            return None
        return _seal(output, plan, work, say)


def finish_shards(folder: str, say: Say = print) -> Manifest:
    """Seal a folder whose parts are all done.

    Raises:
        ValueError: if there is nothing to seal, a part is still at work, or blocks are missing.
    """
    output = Path(folder)
    if (output / MANIFEST_NAME).is_file():
        say(f"{output} is complete already; nothing to do")
        return read_manifest(output)
    if not (output / UNFINISHED_NAME).is_file() or WorkFolder(output).read_plan() is None:
        raise ValueError(
            f"{output} holds no unfinished shards; make them with `python -m preprocess shards --part I/N`"
        )
    with claim(output, resume=True):
        work = WorkFolder(output)
        plan = work.read_plan()
        assert plan is not None
        return _seal(output, plan, work, say)


def _open(settings: ShardSettings, spool: Path, output: Path, say: Say) -> Corpus:
    corpus, reports = open_corpus(settings.corpus, spool, settings.workers)
    _check_output_apart(output, [file.path for file in corpus.files if Path(file.path).parent != spool])
    for line in reports:
        say(line)
    return corpus


def _agree_on_plan(settings: ShardSettings, plan: dict[str, Any], work: WorkFolder, say: Say) -> dict[str, Any]:
    """Compare the plan with that of the unfinished run, or of the other parts, and put it in place."""
    found = work.read_plan()
    if found is None and settings.part is not None:
        found = work.offer_plan(plan)
    if found is None:
        work.write_plan(plan)
        return plan
    compared = plan
    if "invalid_utf8" not in found["settings"]:  # so far no text was invalid, so what is done holds for any choice
        compared = plan | {
            "settings": {name: plan["settings"][name] for name in plan["settings"] if name != "invalid_utf8"}
        }
    different = [*setting_differences(found, compared), *version_differences(found, plan)]
    changes = input_differences(found, plan)
    if changes and settings.part is not None:
        different.append(f"the inputs have changed: {', '.join(changes)}")
    if different:
        raise ValueError(
            f"{work.output} holds an unfinished run made differently: {'; '.join(different)}; give the command as it "
            f"was to go on, or delete {work.output} to start again"
        )
    if changes:
        say(f"note: since the run was stopped the inputs have changed: {', '.join(changes)}")
    if found != plan:
        work.write_plan(plan)
    return plan


def _run(settings: ShardSettings, corpus: Corpus, tokenizer: Tokenizer, work: WorkFolder, say: Say) -> None:
    """Do the blocks of this run that are not done yet."""
    tokenizer.save(work.output / TOKENIZER_FOLDER)
    if settings.heldout:
        (work.output / HELDOUT_FOLDER).mkdir(exist_ok=True)
    run = _executor(settings)
    first, step = settings.share
    blocks = range(first, corpus.num_blocks(settings.shard_bytes), step)
    done = keep_what_fits(settings, corpus, work, blocks, say)
    if settings.cleaning.deduplicate != "none":
        num_duplicates = mark_duplicates(settings, corpus, work, blocks, run)
        say(f"{num_duplicates:,} {settings.cleaning.deduplicate} are repetitions")
        done = keep_unless_duplicates_changed(work, done)
    missing = [block for block in blocks if block not in done]
    if done:
        say(f"{work.output}: {len(done):,} of {len(blocks):,} blocks were done already")
    num_bytes = sum(_size(corpus, settings.shard_bytes, block) for block in missing)
    with progress_bar("encoding", num_bytes) as progress:
        run(ShardJob(settings, corpus, work.output), missing, settings.workers, progress)


def keep_unless_duplicates_changed(work: WorkFolder, done: set[int]) -> set[int]:
    """Return the blocks whose record was made with the list of duplicates that is there now; forget the others."""
    kept = set()
    for block in done:
        record = work.read_record(block)
        if record is not None and record.duplicates_sha256 == digest_of_file(work.duplicates_path(block)):
            kept.add(block)
        else:
            work.forget(block)
    return kept


def _size(corpus: Corpus, block_bytes: int, block: int) -> int:
    return max(0, min(block_bytes, corpus.num_bytes - block * block_bytes))


def _executor(settings: ShardSettings) -> Callable[..., list[Any]]:
    if settings.executor == "ray":
        from preprocess.building.ray_executor import run_blocks_on_ray

        return run_blocks_on_ray
    return run_blocks


def _seal(output: Path, plan: dict[str, Any], work: WorkFolder, say: Say) -> Manifest:
    """Write the manifests when every block is done."""
    records: list[BlockRecord] = []
    missing = []
    for block in range(plan["num_blocks"]):
        record = work.read_record(block)
        if record is None:
            missing.append(block)
        else:
            records.append(record)
    if missing:
        shown = ", ".join(map(str, missing[:MAX_NAMED_BLOCKS])) + (", ..." if len(missing) > MAX_NAMED_BLOCKS else "")
        raise ValueError(
            f"{output} is not complete: {len(missing):,} of {plan['num_blocks']:,} blocks are missing ({shown}); run "
            "the parts that were not run to their end, then finish again"
        )
    manifest = write_manifests(output, plan, records)
    _join_dropped(plan["dropped_file"], work, plan["num_blocks"])
    for line in summary(manifest):
        say(line)
    return manifest


def _join_dropped(name: str | None, work: WorkFolder, num_blocks: int) -> None:
    """Join the dropped texts of all blocks into the file that the user asked for."""
    if name is None:
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as joined:
        for block in range(num_blocks):
            part = work.dropped_path(block)
            if part.is_file():
                joined.write(part.read_bytes())


@contextmanager
def _part_lock(settings: ShardSettings, output: Path) -> Iterator[None]:
    """Keep a second run of the same part out, where the file system has locks."""
    if settings.part is None:
        yield
        return
    work = WorkFolder(output)
    work.make()
    with open(work.path / f"part-{settings.part.replace('/', '-of-')}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"part {settings.part} of {output} is being made by another run now") from None
        except OSError:
            pass
        yield


def _check_output_apart(output: Path, inputs: Sequence[str]) -> None:
    inside = os.path.join(os.path.abspath(output), "")
    for path in inputs:
        if os.path.join(os.path.abspath(path.partition("=")[2] or path), "").startswith(inside):
            raise ValueError(f"--corpus contains {path}, which lies in --output {output}; give another --output")
