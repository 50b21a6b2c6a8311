"""Runs finetune/run.py in a process that ends with the one that started it, however that ends.

The other end of this process's standard input is held by the pretraining run and nobody else; when it is closed, by a
kill too, this process ends at once, and with it what it has started.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    script = REPOSITORY / "finetune" / "run.py"
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")
