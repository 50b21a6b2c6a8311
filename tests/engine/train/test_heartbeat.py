"""Who is judged to be lost, from beats that are written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from engine.train import heartbeat
from engine.train.heartbeat import ALIVE, ENDED, FAILED, LAUNCHER, Beat, Judge, first_beat, is_gone, main_thread

TIMEOUT, INTERVAL = 10.0, 1.0


class Ranks:
    """Beats of some ranks, and a judge that looks at them each second."""

    def __init__(self, number: int = 3) -> None:
        self.beats = {r: Beat(rank=r, host=f"node-{r}", pid=100 + r, namespace="") for r in range(number)}
        self.now = 1000.0
        self.judge = Judge(0, TIMEOUT, INTERVAL, self.now)

    def change(self, rank: int, **values: object) -> None:
        self.beats[rank] = replace(self.beats[rank], **values)

    def look(self, seconds: int, silent: tuple[int, ...] = ()) -> tuple[int, str] | None:
        """Let time pass; all beat but the silent ones."""
        for _ in range(seconds):
            self.now += INTERVAL
            for rank, beat in self.beats.items():
                if rank not in silent:
                    self.change(rank, number=beat.number + 1)
            if found := self.judge.look(self.beats, self.now):
                return found
        return None


def test_silence_beyond_the_limit_is_a_loss():
    ranks = Ranks()
    assert ranks.look(5) is None
    assert ranks.look(10, silent=(2,)) is None
    found = ranks.look(2, silent=(2,))
    assert found is not None and found[0] == 2
    assert found[1].startswith("rank 2 (host node-2, pid 102) has given no sign of life for 11 s")


def test_silence_that_ends_in_time_is_none():
    ranks = Ranks()
    for _ in range(5):
        assert ranks.look(9, silent=(1,)) is None
        assert ranks.look(1) is None


def test_the_judge_does_not_judge_itself_silent_and_leaves_those_that_ended_alone():
    ranks = Ranks()
    ranks.change(1, state=ENDED)
    ranks.change(2, state=FAILED)
    assert ranks.look(100, silent=(0, 1, 2)) is None


def test_time_in_which_the_judge_itself_stood_still_does_not_count():
    ranks = Ranks()
    assert ranks.look(5, silent=(1, 2)) is None
    ranks.now += 3600
    assert ranks.look(1, silent=(1, 2)) is None
    assert ranks.look(4) is None


def test_who_stands_still_while_others_wait_is_lost_once_they_have_waited():
    ranks = Ranks()
    assert ranks.look(50) is None  # all stand at the same collective: a long computation
    ranks.change(0, collectives=8)
    ranks.change(1, collectives=7, place="read, line 3 of rows.py")
    ranks.change(2, collectives=8)
    assert ranks.look(10) is None
    found = ranks.look(2)
    assert found == (
        1,
        "rank 1 (host node-1, pid 101) lives but has kept the others waiting for 11 s: it stands in "
        "read, line 3 of rows.py",
    )


def test_the_rank_furthest_behind_is_named():
    ranks = Ranks(4)
    for rank, collectives in enumerate((8, 7, 8, 5)):
        ranks.change(rank, collectives=collectives)
    found = ranks.look(20)
    assert found is not None and found[0] == 3


@pytest.mark.parametrize("what", ["collectives", "progress"])
def test_a_slow_rank_that_moves_is_not_lost(what):
    ranks = Ranks()
    ranks.change(0, collectives=1000)
    for number in range(10):
        ranks.change(1, **{what: number})
        ranks.change(2, **{what: number})
        assert ranks.look(9) is None


def test_a_rank_that_compiles_or_saves_may_take_long():
    ranks = Ranks()
    ranks.change(0, collectives=8)
    ranks.change(1, collectives=8)
    ranks.change(2, collectives=7, patient=True)
    assert ranks.look(100) is None
    ranks.change(2, patient=False)
    assert ranks.look(10) is None
    assert ranks.look(2) is not None


def test_a_launcher_that_keeps_the_store_is_named():
    judge = Judge(0, TIMEOUT, INTERVAL, 0.0)
    launcher = Beat(rank=LAUNCHER, host="10.0.0.1:29500", pid=0, namespace="", patient=True)
    silent = {LAUNCHER: launcher, 1: Beat(rank=1, host="b", pid=1, namespace="")}
    found = [judge.look(silent, float(second)) for second in range(1, 14)]
    assert found[-1] is not None and "the launcher (its store at 10.0.0.1:29500) has given no sign" in found[-1][1]


def test_a_beat_goes_through_the_store_and_back():
    beat = replace(first_beat(3), text="ValueError: \u4e2d\u6587", collectives=2**40)
    assert Beat.decode(beat.encode()) == beat
    assert (beat.pid, beat.state) == (os.getpid(), ALIVE)


def test_processes_that_ended_are_seen_on_their_own_host_only():
    here = first_beat(0)
    assert not is_gone(here, here)
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but nobody has asked: a zombie
    ended = replace(here, pid=child.pid)
    assert is_gone(ended, here)
    child.wait()
    assert is_gone(ended, here)
    assert not is_gone(replace(ended, host="elsewhere"), here)
    assert not is_gone(replace(ended, namespace="another container"), here)


def seen_from_a_thread() -> tuple[bool, str]:
    """What a thread sees of the main thread."""
    seen: list[tuple[bool, str]] = []
    thread = threading.Thread(target=lambda: seen.append(main_thread()))
    thread.start()
    thread.join()
    return seen[0]


def test_the_place_of_the_main_thread_is_the_innermost_line_outside_libraries():
    patient, place = seen_from_a_thread()
    assert not patient
    assert place.startswith("seen_from_a_thread, line ") and place.endswith("test_heartbeat.py")


@pytest.mark.parametrize(
    ("file", "function"),
    [
        ("/venv/site-packages/torch/_dynamo/convert_frame.py", "work"),
        ("/venv/site-packages/torch/utils/cpp_extension.py", "work"),
        ("/repository/engine/checkpoint/save.py", "work"),
        ("/repository/engine/train/distributed.py", "from_rank_zero"),
        ("/repository/engine/train/pretraining.py", "open_rows"),
    ],
)
def test_the_main_thread_may_take_long_where_it_compiles_or_works_for_all(file, function):
    scope = {"seen_from_a_thread": seen_from_a_thread}
    exec(compile(f"def {function}():\n    return seen_from_a_thread()\n", file, "exec"), scope)
    patient, _ = scope[function]()
    assert patient


def test_patience_names_files_that_exist():
    import torch

    root = os.path.dirname(os.path.dirname(torch.__file__))
    ours = os.path.dirname(os.path.dirname(os.path.dirname(heartbeat.__file__)))
    for part in heartbeat.PATIENT_FILES:
        assert os.path.exists((root if part.startswith("/torch/") else ours) + part), part
