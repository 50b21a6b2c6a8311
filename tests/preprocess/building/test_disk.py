"""A run that fills the disk goes on when there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.preprocess.building.command_line import SECONDS, CommandLine, digests, write_text

SMALL_DISK = """
mount -t tmpfs -o size={small} none {disk} || exit 77
{command}
code=$?
ls -a {disk}/out {disk}/out/.work
[ $code = 2 ] || exit $code
mount -o remount,size=50m {disk} && {command} && cp -r {disk}/out {copy}
"""


@pytest.mark.parametrize("options", [(), ("--deduplicate", "sentences")])
def test_full_disk_then_room(vocabulary_file: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs unshare -rm to mount a small disk")
    text = write_text(tmp_path / "a.txt")
    run = CommandLine(tmp_path, [text], vocabulary_file, "--shard_bytes", "60000", "--compression", "none", *options)
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [*run.command, "--output", str(disk / "out"), "--workers", "2"]
    script = SMALL_DISK.format(
        disk=disk,
        small="1600k" if options else "800k",
        copy=tmp_path / "copy",
        command=" ".join([sys.executable, "-m", "preprocess", *arguments]),
    )
    done = run._start(["unshare", "-rm", "sh", "-c", script])
    said = done.communicate(timeout=SECONDS)[0]
    if done.returncode == 77:
        pytest.skip("may not mount a small disk here")
    assert done.returncode == 0, said
    assert "error: No space left on device: " in said and "free some space there" in said
    assert "Traceback" not in said and ".tmp" not in said
    assert "blocks were done already" in said
    run.run(tmp_path / "unbroken")
    assert digests(tmp_path / "copy") == digests(tmp_path / "unbroken")
