"""Speed, scaling and memory of preprocess/.

python benchmarks/preprocess.py speed   --case english=en.txt,vocab.txt --case chinese=zh.txt,zh_vocab.txt,rjieba
python benchmarks/preprocess.py scaling --corpus F... --tokenizer PATH --megabytes 100
python benchmarks/preprocess.py memory  --corpus F... --tokenizer PATH --megabytes 250 1000

speed: one process, one thread; a case is NAME=TEXT,TOKENIZER[,SEGMENTER], the text a document a line. Each round times
the encoder with an empty cache (cold), a plain loop over the same tokenizer of the ``tokenizers`` library, the encoder
again (warm), all that ``shards`` does with the text in one worker but for starting it (shards: reading, digests,
sentences, a cold encoder, held-out documents, files on disk), and the loop again, so that a change of the machine's
load hits all. Ratios to the loop are taken within a round, and the median over rounds is what to quote. With a word
segmenter word starts are found too, and the reference is ``rjieba.cut`` alone. MB/s are 10^6 bytes of UTF-8 text per
CPU second.

scaling: wall-clock time of the whole command, start-up included, with 1 worker on N MB and 2 workers on 2 N MB,
interleaved, in blocks of 16 MiB. memory: the peak of the summed proportional set sizes (PSS) of all its processes. Both
repeat the given files, each time with another number in every 50th line, so caches are warmer than on new text.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tokenizers

from preprocess.building.encoding import BlockEncoder
from preprocess.building.job import ShardJob
from preprocess.building.settings import DEFAULT_SHARD_BYTES, ShardSettings
from preprocess.building.work import WorkFolder
from preprocess.corpus.corpus import CorpusSettings
from preprocess.corpus.document import Document
from preprocess.corpus.inputs import open_corpus
from preprocess.output_folder import HELDOUT_FOLDER, TOKENIZER_FOLDER
from preprocess.shards import library_versions
from preprocess.tokenizer import load_tokenizer
from preprocess.words import build_segmenter

ROOT = Path(__file__).resolve().parent.parent
BATCH_LINES = 2000
SAMPLE_SECONDS = 0.05


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Case:
    """One text, one tokenizer, and what it is compared with.

    Args:
        argument: NAME=TEXT,TOKENIZER; with a third part, the word segmenter.
    """

    def __init__(self, argument: str) -> None:
        self.name, _, rest = argument.partition("=")
        self.text_path, self.tokenizer_path, *segmenter = rest.split(",")
        self.segmenter = build_segmenter(segmenter[0]) if segmenter else None
        self.lines = [line for line in Path(self.text_path).read_text(encoding="utf-8").split("\n") if line.strip()]
        self.num_bytes = sum(len(line.encode()) + 1 for line in self.lines)
        tokenizer = load_tokenizer(self.tokenizer_path)
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            self.reference = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.reference.no_truncation()

    def ours(self, encoder: BlockEncoder) -> BlockEncoder:
        """Encode every line as a document of one sentence."""
        for line in self.lines:
            encoder.add(Document(line, 0), [line])
        return encoder

    def encoder(self) -> BlockEncoder:
        """Return an encoder with empty caches."""
        return BlockEncoder(load_tokenizer(self.tokenizer_path), self.segmenter)

    def reference_loop(self) -> None:
        """What we compare with: ``rjieba.cut`` of the text if words are wanted, otherwise ``tokenizers``."""
        if self.segmenter is not None:
            import rjieba

            text = "\n".join(self.lines)
            for start in range(0, len(text), 1 << 18):
                rjieba.cut(text[start : start + (1 << 18)])
            return
        for start in range(0, len(self.lines), BATCH_LINES):
            batch = self.lines[start : start + BATCH_LINES]
            for encoding in self.reference.encode_batch_fast(batch, add_special_tokens=False):
                _ = encoding.ids

    def check_equal(self) -> int:
        """Compare all ids with those of ``tokenizers``; return their number."""
        ids, counts = load_tokenizer(self.tokenizer_path).encode(self.lines)
        encodings = self.reference.encode_batch_fast(self.lines, add_special_tokens=False)
        expected = np.fromiter((token for encoding in encodings for token in encoding.ids), np.int64)
        if not np.array_equal(ids, expected) or counts.tolist() != [len(encoding.ids) for encoding in encodings]:
            raise SystemExit(f"{self.name}: the ids differ from those of tokenizers")
        return len(ids)

    def shards(self) -> float:
        """Return the CPU seconds of one worker for the whole text, start-up left out."""
        with tempfile.TemporaryDirectory() as name:
            output = Path(name)
            settings = ShardSettings(
                corpus=CorpusSettings(arguments=[self.text_path], layout=["document_per_line"]),
                tokenizer=self.tokenizer_path,
                output=name,
                word_segmenter=self.segmenter.name if self.segmenter else None,
            )
            (output / HELDOUT_FOLDER).mkdir()
            WorkFolder(output).make()
            load_tokenizer(self.tokenizer_path).save(output / TOKENIZER_FOLDER)
            corpus, _ = open_corpus(settings.corpus, output / "spool")
            job = ShardJob(settings, corpus, output)
            state = job.start()
            state.tokenizer.encode(["a"])
            blocks = range(corpus.num_blocks(settings.shard_bytes))
            return cpu_seconds(lambda: [job.run(state, block, lambda _: None) for block in blocks])

    def round(self) -> dict[str, float]:
        """Time everything once: MB/s, and ratios to the reference."""
        encoder = self.encoder()
        encoder.tokenizer.encode(["a"])  # what is built on first use, not part of encoding
        times = {"cold": cpu_seconds(lambda: self.ours(encoder).finish())}
        first = cpu_seconds(self.reference_loop)
        again = BlockEncoder(encoder.tokenizer, self.segmenter)
        times["warm"] = cpu_seconds(lambda: self.ours(again).finish())
        times["shards"] = self.shards()
        times["reference"] = (first + cpu_seconds(self.reference_loop)) / 2
        speeds = {f"{name}_mb_per_s": self.num_bytes / 1e6 / seconds for name, seconds in times.items()}
        return speeds | {f"{name}_ratio": times["reference"] / times[name] for name in times if name != "reference"}


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Run all cases, interleaved."""
    cases = [Case(argument) for argument in options.case]
    tokens = {case.name: case.check_equal() for case in cases}
    rounds: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    for _ in range(options.rounds):
        for case in cases:
            rounds[case.name].append(case.round())
            print(
                case.name, "  ".join(f"{key} {value:.2f}" for key, value in rounds[case.name][-1].items()), flush=True
            )
    result: dict[str, Any] = {}
    for case in cases:
        median = {key: statistics.median(each[key] for each in rounds[case.name]) for key in rounds[case.name][0]}
        result[case.name] = {"num_bytes": case.num_bytes, "num_tokens": tokens[case.name], "median": median}
        result[case.name]["rounds"] = rounds[case.name]
        print(f"{case.name} median:", "  ".join(f"{key} {value:.2f}" for key, value in median.items()))
    return result


def repeated_corpus(sources: list[str], num_bytes: int, path: Path) -> None:
    """Write a corpus of a size by repeating files, each time with another number in every 50th line."""
    written = turn = 0
    with open(path, "wb") as corpus:
        while written < num_bytes:
            for source in sources:
                lines = Path(source).read_bytes().split(b"\n")
                lines[::50] = [line + f" {turn}".encode() if line.strip() else line for line in lines[::50]]
                data = b"\n".join(lines)[: num_bytes - written].rpartition(b"\n")[0] + b"\n"
                corpus.write(data)
                written += len(data)
                if written + 1000 > num_bytes:
                    return
            turn += 1


def shards_command(corpus: Path, output: Path, options: argparse.Namespace, workers: int) -> list[str]:
    """Return the command that is measured."""
    command = [sys.executable, "-m", "preprocess", "shards", "--corpus", str(corpus), "--tokenizer", options.tokenizer]
    command += ["--layout", "document_per_line", "--shard_bytes", str(options.shard_bytes)]
    return [*command, "--output", str(output), "--workers", str(workers), *options.arguments]


def measure_scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Time 1 worker on N MB against 2 workers on 2 N MB."""
    (megabytes,) = options.megabytes
    efficiencies = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        corpora = {workers: Path(folder) / f"{workers}.txt" for workers in (1, 2)}
        for workers, path in corpora.items():
            repeated_corpus(options.corpus, int(workers * megabytes * 1e6), path)
        for number in range(options.rounds):
            seconds = {}
            for workers, path in corpora.items():
                start = time.monotonic()
                command = shards_command(path, Path(folder) / f"{number}-{workers}", options, workers)
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                seconds[workers] = time.monotonic() - start
            efficiencies.append({"seconds": seconds, "efficiency": seconds[1] / seconds[2]})
            print(efficiencies[-1], flush=True)
    return {"rounds": efficiencies, "median_efficiency": statistics.median(each["efficiency"] for each in efficiencies)}


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))
    except OSError:
        return


def summed_pss(pid: int) -> int:
    """Return the bytes that a process and its children hold; shared pages count once."""
    total = 0
    for each in descendants(pid):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak of all processes for each size of corpus."""
    peaks = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        for megabytes in options.megabytes:
            corpus = Path(folder) / "corpus.txt"
            repeated_corpus(options.corpus, int(megabytes * 1e6), corpus)
            command = shards_command(corpus, Path(folder) / f"{megabytes}", options, options.workers)
            peak = 0
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                while process.poll() is None:
                    peak = max(peak, summed_pss(process.pid))
                    time.sleep(SAMPLE_SECONDS)
            if process.returncode:
                raise SystemExit(f"{command} failed")
            peaks[megabytes] = peak
            print(f"{megabytes} MB: peak {peak / 1e6:.0f} MB", flush=True)
    return {"workers": options.workers, "peak_bytes": peaks}


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--case", action="append", required=True, help="NAME=TEXT,TOKENIZER[,SEGMENTER]")
    for name, default in (("scaling", [100.0]), ("memory", [250.0, 1000.0])):
        command = commands.add_parser(name)
        command.add_argument("--corpus", nargs="+", required=True)
        command.add_argument("--tokenizer", required=True)
        command.add_argument("--megabytes", nargs="+", type=float, default=default)
        command.add_argument("--scratch", help="folder for temporary files")
        command.add_argument("arguments", nargs=argparse.REMAINDER, help="behind --: further options of `shards`")
    commands.choices["scaling"].set_defaults(shard_bytes=16 << 20)
    commands.choices["memory"].set_defaults(shard_bytes=DEFAULT_SHARD_BYTES)
    commands.choices["memory"].add_argument("--workers", type=int, default=2)
    for command in commands.choices.values():
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    if getattr(options, "arguments", None):
        options.arguments = options.arguments[1:]  # the --
    measure = {"speed": measure_speed, "scaling": measure_scaling, "memory": measure_memory}[options.command]
    result = {
        "command": options.command,
        "machine": platform.processor() or platform.machine(),
        "versions": library_versions() | {"python": platform.python_version(), "numpy": np.__version__},
        "result": measure(options),
    }
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
