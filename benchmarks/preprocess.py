"""Speed of encoding and of writing shards, as ratios to ``tokenizers.encode_batch_fast`` measured in the same run.

python benchmarks/preprocess.py --corpus books/*.txt --vocab vocab.txt [--rounds 5] [--output result.json]

One process, one thread. Each round times our encoder with an empty cache, ``tokenizers``, our encoder with a warm cache
and ``tokenizers`` again, so that a change of the machine's load hits both; ratios are taken within a round, and the
median over the rounds is what to quote. MB/s are 10^6 bytes of UTF-8 text per CPU second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from preprocess.building.job import ShardJob
from preprocess.corpus.inputs import open_corpus
from preprocess.shards import library_versions
from preprocess.tokenizer import Tokenizer, load_tokenizer
from preprocess.tokenizer.command import CorpusLines
from preprocess.tokenizer.wordpiece import WordPieceEncoder

SHARD_BYTES = 4 << 20


def seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_round(tokenizer: Tokenizer, lines: list[str], job: ShardJob) -> dict[str, float]:
    """Time everything once; the values are MB/s."""
    backend = tokenizer.encoder.backend
    encoder = WordPieceEncoder(backend, tokenizer.dtype)
    num_lines_bytes = sum(len(line.encode()) for line in lines)
    num_blocks = job.corpus.num_blocks(job.shard_bytes)
    steps: dict[str, tuple[int, Callable[[], object]]] = {
        "encoder_cold": (num_lines_bytes, lambda: encoder.encode(lines)),
        "tokenizers_first": (num_lines_bytes, lambda: backend.encode_batch_fast(lines, add_special_tokens=False)),
        "encoder_warm": (num_lines_bytes, lambda: encoder.encode(lines)),
        "tokenizers_second": (num_lines_bytes, lambda: backend.encode_batch_fast(lines, add_special_tokens=False)),
        "shards_warm": (
            job.corpus.num_bytes,
            lambda: [job.run(tokenizer, block, lambda _: None) for block in range(num_blocks)],
        ),
    }
    return {name: num_bytes / 1e6 / seconds(work) for name, (num_bytes, work) in steps.items()}


def ratios(speeds: dict[str, float]) -> dict[str, float]:
    """Return the ratios within a round."""
    reference = (speeds["tokenizers_first"] + speeds["tokenizers_second"]) / 2
    return {f"{name}_ratio": speeds[name] / reference for name in ("encoder_cold", "encoder_warm", "shards_warm")}


def check_equal(tokenizer: Tokenizer, lines: list[str]) -> int:
    """Compare all ids with those of ``tokenizers``; return their number."""
    ids, counts = tokenizer.encode(lines)
    encodings = tokenizer.encoder.backend.encode_batch_fast(lines, add_special_tokens=False)
    expected = np.fromiter((token for encoding in encodings for token in encoding.ids), np.int64)
    if not np.array_equal(ids, expected) or counts.tolist() != [len(encoding.ids) for encoding in encodings]:
        raise SystemExit("the ids differ from those of tokenizers")
    return len(ids)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, help="text files")
    parser.add_argument("--vocab", required=True, help="vocab.txt or tokenizer folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.vocab)
    corpus, _ = open_corpus(options.corpus)
    lines = list(CorpusLines(corpus))
    num_tokens = check_equal(tokenizer, lines)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        job = ShardJob(corpus, Path(folder), SHARD_BYTES, 0.0, "zstd")
        for _ in range(options.rounds):
            speeds = measure_round(tokenizer, lines, job)
            rounds.append(speeds | ratios(speeds))
            print("  ".join(f"{name} {value:.1f}" for name, value in rounds[-1].items()), flush=True)
    median = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    print("median:", "  ".join(f"{name} {value:.1f}" for name, value in median.items()))
    result = {
        "corpus": [Path(name).name for name in options.corpus],
        "num_bytes": corpus.num_bytes,
        "num_tokens": num_tokens,
        "distinct_spans": len(tokenizer.encoder.spans),
        "machine": platform.processor() or platform.machine(),
        "versions": library_versions() | {"python": platform.python_version(), "numpy": np.__version__},
        "rounds": rounds,
        "median": median,
    }
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
