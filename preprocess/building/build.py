"""Makes a shard folder out of a corpus: blocks to workers, records to manifests, going on where a run was stopped."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preprocess.building.dropped import check_dropped, join_dropped, path_of_argument
from preprocess.building.duplicates import mark_duplicates
from preprocess.building.job import ShardJob
from preprocess.building.manifests import summary, write_manifests
from preprocess.building.plan import input_differences, make_plan, setting_differences, version_differences
from preprocess.building.recognition import recognise
from preprocess.building.resume import keep_what_fits
from preprocess.building.same_text import check_records_agree, describe_files, refuse_other_text
from preprocess.building.settings import ShardSettings
from preprocess.building.work import BlockRecord, WorkFolder, digest_of_file
from preprocess.corpus.corpus import Corpus
from preprocess.corpus.inputs import open_corpus
from preprocess.manifest import MANIFEST_NAME, Manifest, read_manifest
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER, UNFINISHED_NAME, claim, hold_part
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
            manifest = recognise(read_manifest(output), settings, tokenizer, corpus, say)
        if settings.dropped is not None:
            say(f"note: {settings.dropped} is written only while shards are made; it was left as it is")
        return manifest
    is_part = settings.part is not None
    with (
        claim(output, resume=True, shared=is_part, say=say),
        hold_part(output, settings.share) if is_part else contextlib.nullcontext(),
    ):
        work = WorkFolder(output)
        work.make()
        corpus = _open(settings, work.spool, output, say)
        plan = make_plan(settings, corpus, tokenizer) | {"inputs": describe_files(corpus, sampled=is_part)}
        plan = _agree_on_plan(settings, corpus, plan, work, say)
        _run(settings, corpus, tokenizer, plan, work, say)
        if settings.part is not None:
            say(f"part {settings.part} of {output} is done; when all parts are: python -m preprocess finish {output}")
            return None
        return _seal(output, plan, _records(output, plan, work), work, say)


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
    with claim(output, resume=True, say=say):
        work = WorkFolder(output)
        plan = work.read_plan()
        assert plan is not None
        records = _records(output, plan, work)
        check_records_agree(plan, records, work, say)
        return _seal(output, plan, records, work, say)


def _open(settings: ShardSettings, spool: Path, output: Path, say: Say) -> Corpus:
    corpus, reports = open_corpus(settings.corpus, spool, settings.workers)
    _check_output_apart(output, [file.path for file in corpus.files if Path(file.path).parent != spool])
    if settings.dropped is not None:
        check_dropped(settings.dropped, output, settings.corpus.arguments, [file.path for file in corpus.files])
    for line in reports:
        say(line)
    if settings.cleaning.deduplicate == "sentences" and corpus.has_second:
        raise ValueError(
            "--deduplicate sentences is for documents of one text, and this corpus has second texts; give "
            "--deduplicate documents, which compares both"
        )
    return corpus


def _agree_on_plan(
    settings: ShardSettings, corpus: Corpus, plan: dict[str, Any], work: WorkFolder, say: Say
) -> dict[str, Any]:
    """Compare the plan with that of the unfinished run, or of the other parts, and put it in place.

    What the change of plan makes useless goes before the new plan is there, so that no run takes it for its own.
    """
    found = work.read_plan()
    if found is None and settings.part is not None:
        found = work.offer_plan(plan)
    if found is None:
        _forget_all(work)
        work.write_plan(plan)
        return plan
    changes = _compare_plans(settings, found, plan, work.output)
    if settings.part is not None:
        refuse_other_text(settings, corpus, work, found, plan, say)
        plan = plan | {"inputs": found.get("inputs", plan["inputs"])}
    if changes:
        say(f"note: since the run was stopped the inputs have changed: {', '.join(changes)}")
        work.forget_digests()  # the files may be read in another way now, though their bytes are the same
    if [found["labels"], found["has_second"]] != [plan["labels"], plan["has_second"]]:
        say("note: all blocks are made again: the documents have other labels or second texts than before")
        _forget_all(work)
    if found != plan:
        work.write_plan(plan)
    return plan


def _compare_plans(settings: ShardSettings, found: dict[str, Any], plan: dict[str, Any], output: Path) -> list[str]:
    """Return how the inputs have changed since the plan ``found``; ValueError names what must not change."""
    # so far nothing was invalid or incomplete where these are not named, so what is done holds for any choice
    open_choices = {"invalid_utf8", "incomplete_records"} - found["settings"].keys()
    compared = plan | {
        "settings": {name: value for name, value in plan["settings"].items() if name not in open_choices}
    }
    different = [*setting_differences(found, compared), *version_differences(found, plan)]
    changes = input_differences(found, plan)
    if settings.part is not None:
        if changes:
            different.append(f"the inputs have changed: {', '.join(changes)}")
        if found["dropped_file"] != plan["dropped_file"]:
            different.append(f"dropped was {found['dropped_file'] or 'off'} and is {plan['dropped_file'] or 'off'}")
    if different:
        raise ValueError(
            f"{output} holds an unfinished run made differently: {'; '.join(different)}; give the command as it "
            f"was to go on, or delete {output} to start again"
        )
    return changes


def _forget_all(work: WorkFolder) -> None:
    for block in work.blocks_on_disk():
        work.forget(block)
    work.forget_digests()


def _run(
    settings: ShardSettings, corpus: Corpus, tokenizer: Tokenizer, plan: dict[str, Any], work: WorkFolder, say: Say
) -> None:
    """Do the blocks of this run that are not done yet."""
    tokenizer.save(work.output / TOKENIZER_FOLDER)
    if settings.heldout:
        (work.output / HELDOUT_FOLDER).mkdir(exist_ok=True)
    run = _executor(settings, plan)
    first, step = settings.share
    blocks = range(first, corpus.num_blocks(settings.shard_bytes), step)
    done = keep_what_fits(settings, corpus, work, blocks, say)
    if settings.cleaning.deduplicate != "none":
        num_duplicates = mark_duplicates(settings, corpus, work, blocks, run)
        say(f"{num_duplicates:,} {settings.cleaning.deduplicate} are repetitions")
        done = _keep_unless_duplicates_changed(work, done)
    missing = [block for block in blocks if block not in done]
    if done:
        say(f"{work.output}: {len(done):,} of {len(blocks):,} blocks were done already")
    total = corpus.num_bytes
    num_bytes = sum(min(settings.shard_bytes, total - block * settings.shard_bytes) for block in missing)
    with progress_bar("encoding", num_bytes) as progress:
        run(ShardJob(settings, corpus, work.output), missing, settings.workers, progress)


def _keep_unless_duplicates_changed(work: WorkFolder, done: set[int]) -> set[int]:
    """Return the blocks whose record was made with the list of duplicates that is there now; forget the others."""
    kept = set()
    for block in done:
        record = work.read_record(block)
        if record is not None and record.duplicates_sha256 == digest_of_file(work.duplicates_path(block)):
            kept.add(block)
        else:
            work.forget(block)
    return kept


def _executor(settings: ShardSettings, plan: dict[str, Any]) -> Callable[..., list[Any]]:
    if settings.executor == "ray":
        from preprocess.building.ray_executor import run_blocks_on_ray

        segmenter = plan["settings"].get("word_segmenter", {})
        versions = {segmenter["name"]: segmenter["version"]} if "version" in segmenter else {}
        return functools.partial(run_blocks_on_ray, versions=plan["versions"] | versions)
    return run_blocks


def _records(output: Path, plan: dict[str, Any], work: WorkFolder) -> list[BlockRecord]:
    """Return the records of all blocks; ValueError names those that are missing."""
    records: list[BlockRecord] = []
    missing = []
    for block in range(plan["num_blocks"]):
        record = work.read_record(block)
        if record is None or not work.is_there(record, plan["dropped_file"] is not None):
            missing.append(block)
        else:
            records.append(record)
    if missing:
        shown = ", ".join(map(str, missing[:MAX_NAMED_BLOCKS])) + (", ..." if len(missing) > MAX_NAMED_BLOCKS else "")
        raise ValueError(
            f"{output} is not complete: {len(missing):,} of {plan['num_blocks']:,} blocks are missing ({shown}); run "
            "the parts that were not run to their end, then finish again"
        )
    return records


def _seal(output: Path, plan: dict[str, Any], records: Sequence[BlockRecord], work: WorkFolder, say: Say) -> Manifest:
    """Write the manifests: every block is done."""
    if plan["dropped_file"] is not None:
        join_dropped(Path(plan["dropped_file"]), work, plan["num_blocks"])  # before a manifest says that all is done
    if not any(record.kept for record in records):
        shutil.rmtree(work.path)  # nothing worth going on with: other options may begin anew
    manifest = write_manifests(output, plan, records)
    for line in summary(manifest):
        say(line)
    return manifest


def _check_output_apart(output: Path, inputs: Sequence[str]) -> None:
    inside = os.path.join(os.path.abspath(output), "")
    for path in inputs:
        if os.path.join(os.path.abspath(path_of_argument(path)), "").startswith(inside):
            raise ValueError(f"--corpus contains {path}, which lies in --output {output}; give another --output")
