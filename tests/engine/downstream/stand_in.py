"""Stands in for engine/downstream/child.py: no training, but its files, exit codes and times, as the settings ask."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

threading.Thread(target=lambda: (os.read(0, 1), os._exit(99)), daemon=True).start()
given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
settings = json.loads(Path(given["--config"]).read_text())
acts = settings.get("acts", {})
with open(acts["diary"], "a") as diary:
    names = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "TORCHELASTIC_RUN_ID")]
    entry = {"dry": "--dry_run" in given, "model": given["--model"], "names": names, "extra": os.environ.get("EXTRA")}
    diary.write(json.dumps({**entry, "task": Path(given["--config"]).stem, "pid": os.getpid()}) + "\n")
if "--dry_run" in given:
    while acts.get("check_hangs"):
        time.sleep(0.02)
    if acts.get("refused"):
        print("error: columns is wrong")
        sys.exit(2)
    sys.exit(0)
weights = (Path(given["--model"]) / "model.safetensors").read_text()
while Path(acts.get("wait_for", "/")).exists() is False:
    time.sleep(0.02)
if weights == acts.get("fails_on"):
    print("much before\nerror: it went wrong")
    sys.exit(7)
output = Path(given["--output"])
assert not output.exists()
(output / "checkpoints" / "step-1" / "model").mkdir(parents=True)
(output / "model").symlink_to("checkpoints/step-1/model")
results = {"dev_accuracy": float(weights), "dev_loss": 0.5, "labels": ["a"], "num_examples": {"dev": 3}, "seconds": 1.0}
(output / "results.json").write_text(json.dumps(acts.get("results", results)))
