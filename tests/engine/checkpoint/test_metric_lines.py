"""metrics.jsonl as it is while a run appends to it, or after a kill: what can be read is read, and nothing fails."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.checkpoint.metric_lines import MetricLine, end_last_line, read_metric_lines


def test_no_file(tmp_path: Path) -> None:
    assert read_metric_lines(tmp_path / "absent") == ([], 0)


@pytest.mark.parametrize(
    ("torn", "unreadable"),
    [
        ('{"step": 2, "lo', 0),
        ('{"step": 2}', 0),  # its end is still to come
        ('{"step": 2, "lo\n', 1),
        ("[]\n", 1),
        ('"text"\n\n', 2),
        ('{"loss": 1}\n', 1),
        ('{"step": null}\n{"step": true}\n{"step": NaN}\n', 3),
        ('{"step": 2, "x": "\xe4\n', 1),
    ],
)
def test_lines_that_are_none(torn: str, unreadable: int, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.5, "mfu": null}\n' + torn.encode("latin-1"))
    line = MetricLine('{"step": 1, "loss": 2.5, "mfu": null}\n', 1, {"loss": 2.5, "mfu": None})
    assert read_metric_lines(file) == ([line], unreadable)


def test_a_line_after_a_torn_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    end_last_line(file)
    assert not file.exists()
    file.touch()
    end_last_line(file)
    assert file.read_bytes() == b""
    file.write_text('{"step": 1}\n{"step": 2, "lo')
    for _ in range(2):
        end_last_line(file)
    with file.open("a") as opened:
        opened.write('{"step": 1, "downstream_toy_f1": 0.5}\n')
    lines, unreadable = read_metric_lines(file)
    assert [line.figures for line in lines] == [{}, {"downstream_toy_f1": 0.5}] and unreadable == 1


def test_while_another_thread_appends(tmp_path: Path) -> None:
    file, number = tmp_path / "metrics.jsonl", 300

    def append() -> None:
        for step in range(number):
            line = f'{{"step": {step}, "loss": 1.0}}\n'
            for part in (line[:9], line[9:]):
                with file.open("a") as opened:
                    opened.write(part)

    thread = threading.Thread(target=append)
    thread.start()
    while thread.is_alive():
        lines, unreadable = read_metric_lines(file)
        assert [line.step for line in lines] == list(range(len(lines))) and unreadable == 0
    assert len(read_metric_lines(file)[0]) == number
