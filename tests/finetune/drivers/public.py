"""Tiny files in the formats of GLUE's and CLUE's downloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TREES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
MNLI = ["index", "promptID", "pairID", "genre", *TREES, "sentence1", "sentence2"]
STSB = ["index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2"]
KINDS = ("entailment", "neutral", "contradiction")


def tsv(
    path: Path, header: Sequence[str] | None, rows: Sequence[Sequence[Any]], end: str = "\n", bom: bool = False
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, cells)) for cells in [*([header] if header else []), *rows]]
    path.write_bytes(b"\xef\xbb\xbf" * bom + "".join(line + end for line in lines).encode())


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def text(number: int, kind: int = 0) -> str:
    """A sentence that tells its class, with the quotes that trip csv readers."""
    return f'{["apple", "river", "stone"][kind]} "bread cloud {["dance", "earth"][number % 2]} {number}'


def write_cola(folder: Path, count: int = 12) -> None:
    for name in ("train", "dev"):
        tsv(
            folder / f"CoLA/{name}.tsv",
            None,
            [("gj04", n % 2, "*" * (1 - n % 2), text(n, n % 2)) for n in range(count)],
        )
    tsv(folder / "CoLA/test.tsv", ["index", "sentence"], [(n, text(n)) for n in range(5)])


def write_mnli(folder: Path, count: int = 12) -> None:
    rows = [(n, f"{n}", f"{n}e", "fiction", "(", ")", "(ROOT", ")", text(n, n % 3), text(n + 7)) for n in range(count)]
    train = [(*row, KINDS[n % 3], KINDS[n % 3]) for n, row in enumerate(rows)]
    dev = [(*row, *[KINDS[n % 3]] * 5, KINDS[n % 3] if n else "-") for n, row in enumerate(rows)]
    tsv(folder / "MNLI/train.tsv", [*MNLI, "label1", "gold_label"], train)
    for name in ("matched", "mismatched"):
        header = [*MNLI, *(f"label{n}" for n in range(1, 6)), "gold_label"]
        tsv(folder / f"MNLI/dev_{name}.tsv", header, dev)
        tsv(folder / f"MNLI/test_{name}.tsv", MNLI, [(n + 100, *row[1:]) for n, row in enumerate(rows)])
    tsv(
        folder / "diagnostic/diagnostic.tsv",
        ["index", "sentence1", "sentence2"],
        [(n, text(n), text(n)) for n in range(4)],
    )


def write_glue(folder: Path) -> None:
    """All nine tasks."""
    write_cola(folder)
    write_mnli(folder)
    for name in ("train", "dev"):
        tsv(folder / f"SST-2/{name}.tsv", ["sentence", "label"], [(text(n) + " ", n % 2) for n in range(6)])
        quality = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        tsv(
            folder / f"MRPC/{name}.tsv",
            quality,
            [(n % 2, n, n + 1, text(n), text(n + 1)) for n in range(6)],
            "\r\n",
            True,
        )
        tsv(folder / f"STS-B/{name}.tsv", [*STSB, "score"],
            [(n, "main-captions", "MSRvid", "2012test", "0001", "none", "none", text(n), text(n + 1), f"{n % 6}.000")
             for n in range(6)])  # fmt: skip
        tsv(folder / f"QNLI/{name}.tsv", ["index", "question", "sentence", "label"],
            [(n, text(n), text(n + 1), ("entailment", "not_entailment")[n % 2]) for n in range(6)])  # fmt: skip
        tsv(folder / f"RTE/{name}.tsv", ["index", "sentence1", "sentence2", "label"],
            [(n, text(n), text(n + 1), ("entailment", "not_entailment")[n % 2]) for n in range(6)])  # fmt: skip
        tsv(folder / f"WNLI/{name}.tsv", ["index", "sentence1", "sentence2", "label"],
            [(n, text(n), text(n + 1), n % 2) for n in range(6)])  # fmt: skip
        tsv(folder / f"QQP/{name}.tsv", ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
            [*[(n, n, n + 1, text(n), text(n + 1), n % 2) for n in range(6)], (6, 6, 7, "a broken line")])  # fmt: skip
    tsv(folder / "SST-2/test.tsv", ["index", "sentence"], [(n, text(n)) for n in range(3)])
    tsv(folder / "MRPC/test.tsv", ["index", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        [(n, n, n + 1, text(n), text(n)) for n in range(3)], "\r\n", True)  # fmt: skip
    tsv(folder / "STS-B/test.tsv", STSB,
        [(n, "g", "f", "2012test", "0001", "none", "none", text(n), text(n + 1)) for n in range(3)])  # fmt: skip
    tsv(folder / "QQP/test.tsv", ["id", "question1", "question2"], [(n, text(n), text(n)) for n in range(3)])
    tsv(folder / "QNLI/test.tsv", ["index", "question", "sentence"], [(n, text(n), text(n)) for n in range(3)])
    for name in ("RTE", "WNLI"):
        tsv(folder / f"{name}/test.tsv", ["index", "sentence1", "sentence2"], [(n, text(n), text(n)) for n in range(3)])


def write_clue(folder: Path) -> None:
    """Tasks in JSON Lines, XNLI, and tables without a first line of names."""
    for name in ("train", "dev"):
        jsonl(folder / f"afqmc/{name}.json",
              [{"sentence1": f"借呗{n}", "sentence2": f"花呗{n}", "label": str(n % 2)} for n in range(4)])  # fmt: skip
        jsonl(folder / f"tnews/{name}.json",
              [{"label": str(100 + n), "label_desc": "news_story", "sentence": f"新闻{n}", "keywords": "词,词"}
               for n in range(4)])  # fmt: skip
        jsonl(folder / f"iflytek/{name}.json",
              [{"label": str(n), "label_des": "打车", "sentence": f"应用{n}"} for n in range(4)])  # fmt: skip
        jsonl(folder / f"cmnli/{name}.json",
              [{"sentence1": f"前提{n}", "sentence2": "假设", "label": ("neutral", "-")[n == 3]}
               for n in range(4)])  # fmt: skip
        jsonl(folder / f"ocnli/{name}.json",
              [{"level": "easy", "sentence1": f"前提{n}", "sentence2": "假设", "label": ("neutral", "-")[n == 3],
                "label0": "neutral", "label1": None, "genre": "news", "prem_id": "n", "id": n}
               for n in range(4)])  # fmt: skip
        jsonl(folder / f"csl/{name}.json",
              [{"id": n, "abst": f"摘要{n}", "keyword": ["水声", "材料"], "label": str(n % 2)}
               for n in range(4)])  # fmt: skip
        tsv(folder / f"LCQMC/{name}.txt", None, [(f"甲{n}", f"乙{n}", n % 2) for n in range(4)])
        tsv(
            folder / f"bq_corpus/{name}.tsv", ["text_a", "text_b", "label"], [(f"甲{n}", "乙", n % 2) for n in range(4)]
        )
        tsv(folder / f"chnsenticorp/{name}.tsv", ["label", "text_a"], [(n % 2, f"酒店{n}") for n in range(4)])
    jsonl(folder / "afqmc/test.json", [{"id": n + 10, "sentence1": "借", "sentence2": "花"} for n in range(3)])
    tsv(folder / "XNLI-MT-1.0/multinli/multinli.train.zh.tsv", ["premise", "hypo", "label"],
        [(f"前提{n}", "假设", ("neutral", "contradictory")[n % 2]) for n in range(4)])  # fmt: skip
    for name in ("dev", "test"):
        tsv(folder / f"XNLI-1.0/xnli.{name}.tsv", ["language", "gold_label", "sentence1", "sentence2", "pairID"],
            [(("zh", "ar")[n % 2], "contradiction", f"前提{n}", "假设", n) for n in range(6)])  # fmt: skip
