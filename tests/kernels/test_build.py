"""Building the libraries: once, by any number of processes at a time, with messages; and what the compilers say."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import build, build_lock

REPOSITORY = Path(build.__file__).resolve().parent.parent
MAX_REGISTERS = 224
TORCH_2_11 = Path(__file__).with_name("torch_2_11_symbols.txt")  # of libtorch_cpu.so, by nm -D
needs = {
    name: pytest.mark.skipif(build.missing(name) is not None, reason=f"{name}: {build.missing(name)}")
    for name in ("cpu", "cuda", "emulator")
}
TINY = '#include "api.h"\nextern "C" int answer() { return 42; }\n'


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of one small file, and an empty folder to build into."""
    sources = tmp_path / "csrc"
    shutil.copytree(build.SOURCES / "common", sources / "common")
    (sources / "cpu").mkdir()
    (sources / "cpu" / "tiny.cpp").write_text(TINY)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("KERNELS_BUILD_FOLDER", str(tmp_path / "built"))
    monkeypatch.setattr(build, "library", tiny_library)
    return sources


def tiny_library(name: str) -> build.Library:
    compiler = str(build.host_compiler())
    command = build.Command("cpu/tiny.cpp", (compiler, "-fPIC", f"-I{build.SOURCES / 'common'}"))
    return build.Library("cpu", ("common", "cpu"), (command,), (compiler, "-shared"))


@needs["cpu"]
def test_a_library_is_built_once_for_a_state_of_its_sources(tiny, capsys):
    first = build.build("cpu")
    assert ctypes.CDLL(str(first)).answer() == 42
    made = first.stat().st_mtime_ns
    assert build.build("cpu") == first and first.stat().st_mtime_ns == made
    assert capsys.readouterr().err.count("building the cpu library") == 1
    (tiny / "cpu" / "tiny.cpp").write_text(TINY.replace("42", "43"))
    second = build.build("cpu")
    assert second != first and first.is_file() and ctypes.CDLL(str(second)).answer() == 43
    header = tiny / "common" / "api.h"
    header.write_text(header.read_text() + "\n")
    assert build.build("cpu") not in (first, second)


@needs["cpu"]
def test_a_relative_folder_is_one_of_where_the_process_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERNELS_BUILD_FOLDER", "relative")
    assert build.build("cpu").is_relative_to(tmp_path / "relative")


@needs["cpu"]
def test_what_a_compiler_refuses_is_shown_and_leaves_nothing(tiny, tmp_path):
    (tiny / "cpu" / "tiny.cpp").write_text("int broken(")
    with pytest.raises(build.BuildError, match=r"cpu library could not be built: .*tiny\.cpp:1.* error: .*cpu\.failed"):
        build.build("cpu")
    assert sorted(path.name for path in (tmp_path / "built").iterdir()) == [".cpu.lock", "cpu.failed.log", "objects"]
    assert "int broken(" in (tmp_path / "built" / "cpu.failed.log").read_text()
    assert build.failure("cpu") == f"could not be built: {tmp_path / 'built' / 'cpu.failed.log'}"
    (tiny / "cpu" / "tiny.cpp").write_text(TINY)
    assert build.build("cpu").is_file() and build.failure("cpu") is None


@needs["cpu"]
def test_a_lock_that_a_killed_build_left_holds_nobody(tiny, tmp_path):
    (tmp_path / "built" / ".cpu-half").mkdir(parents=True)
    (tmp_path / "built" / ".cpu.lock").touch()
    assert build.build("cpu").is_file()


@needs["cpu"]
def test_a_lock_of_a_process_that_hangs_is_waited_for_and_then_left(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build_lock, "LOCK_SECONDS", 0.3)
    (tmp_path / "built").mkdir()
    hold = "import fcntl, os, signal; fcntl.flock(1, fcntl.LOCK_EX); os.write(2, b'x'); os.kill(0, signal.SIGSTOP)"
    with (tmp_path / "built" / ".cpu.lock").open("w") as lock:
        command = [sys.executable, "-c", hold]
        holder = subprocess.Popen(command, stdout=lock, stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stderr is not None and holder.stderr.read(1) == b"x"
        assert ctypes.CDLL(str(build.build("cpu"))).answer() == 42
    finally:
        holder.kill()
        holder.communicate()
    said = capsys.readouterr().err
    assert said.count("waiting for another process, which builds the cpu library") == 1
    assert "it is built here too" in said


@needs["cpu"]
def test_a_folder_that_cannot_be_written_is_passed_over(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "folders", lambda: [tmp_path / "file" / "below", tmp_path / "good"])
    assert build.build("cpu").is_relative_to(tmp_path / "good")
    monkeypatch.setattr(build, "folders", lambda: [tmp_path / "file" / "below"])
    with pytest.raises(build.BuildError, match="can be written; set KERNELS_BUILD_FOLDER"):
        build.build("cpu")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(build, "host_compiler", lambda: None)
    with pytest.raises(
        build.BuildError, match=r"cpu cannot be built: there is no C\+\+ compiler \(apt-get install g\+\+"
    ):
        build.library("cpu")
    monkeypatch.undo()
    monkeypatch.setattr(build, "cuda_compiler", lambda: None)
    with pytest.raises(build.BuildError, match="cuda cannot be built: there is no nvcc"):
        build.library("cuda")
    monkeypatch.setattr(build, "cuda_include", lambda: None)
    with pytest.raises(build.BuildError, match="emulator cannot be built: there are no CUDA headers"):
        build.library("emulator")


@needs["cpu"]
def test_without_a_compiler_only_a_library_of_these_sources_is_taken(tiny, monkeypatch):
    monkeypatch.setenv("KERNELS_BUILD_FOLDER", str(tiny.parent / build.BUILT))
    made = build.build("cpu")

    def nothing(name: str) -> build.Library:
        raise build.BuildError("there is no compiler")

    monkeypatch.setattr(build, "library", nothing)
    assert build.find("cpu") == made
    (tiny / "cpu" / "tiny.cpp").write_text(TINY.replace("42", "43"))
    assert build.find("cpu") is None
    (tiny / "cpu" / "tiny.cpp").write_text(TINY)
    (made.parent / build.MARK).unlink()  # of a version that left none
    assert build.find("cpu") is None


@needs["emulator"]
def test_processes_that_start_together_build_once(tmp_path):
    env = {**os.environ, "KERNELS_BUILD_FOLDER": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "kernels", "--build", "emulator"]
    started = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert "".join(err for _, err in outputs).count("building the emulator library") == 1
    assert len({out for out, _ in outputs}) == 1
    assert [path.name[0] for path in tmp_path.iterdir() if path.name not in (".emulator.lock", "objects")] == ["e"]


@needs["cuda"]
def test_cuda_library_loads_without_a_gpu_and_has_its_functions():
    torch.ops.load_library(str(build.build("cuda")))
    library = ctypes.CDLL(str(build.build("cuda")), mode=os.RTLD_LAZY)
    text = "".join(path.read_text() for path in (build.SOURCES / "cuda").glob("*.cu"))
    exported = re.findall(r"KERNELS_EXPORT int32_t (\w+)\(", text)
    assert len(exported) == text.count("KERNELS_EXPORT") >= 3
    assert all(getattr(library, name) for name in exported)


@needs["cuda"]
@needs["cpu"]
def test_bindings_declare_the_same_operators_everywhere():
    found = {}
    for name in ("cpu", "cuda"):
        torch.ops.load_library(str(build.build(name)))
        schemas = [str(each) for each in torch._C._jit_get_all_schemas() if each.name.startswith(f"kernels_{name}::")]
        found[name] = sorted(schema.replace(f"kernels_{name}::", "") for schema in schemas)
    assert set(found["cuda"]) <= set(found["cpu"]) and len(found["cuda"]) >= 3


@pytest.mark.parametrize("name", [pytest.param("cpu", marks=needs["cpu"]), pytest.param("cuda", marks=needs["cuda"])])
def test_libraries_ask_of_torch_only_what_is_stable_and_2_11_has(name):
    asked = undefined(build.build(name))
    torch_cpu = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    given = subprocess.run(["nm", "-D", "--defined-only", torch_cpu], capture_output=True, text=True, check=True).stdout
    here = {line.split()[-1].partition("@")[0] for line in given.splitlines()}
    of_torch = {name for name in asked if re.match(r"(aoti_)?torch", name)}
    assert of_torch and of_torch <= here  # of its CUDA library nothing: a function there is looked up when it is needed
    assert of_torch <= set(TORCH_2_11.read_text().split())
    assert not [name for name in asked if name.startswith(("_ZN2at", "_ZN3c10", "_ZNK3c10"))]


@needs["cpu"]
def test_files_of_a_level_share_nothing_but_their_tables():
    """A function or object that two levels define could be taken from the wrong one."""
    library, folder = build.library("cpu"), build.build("cpu").parent.parent
    levels = [command for command in library.compile if any("KERNELS_LEVEL" in each for each in command.arguments)]
    more = len(build.BF16_SOURCES)
    assert (len(levels) - more) % len(build.CPU_LEVELS) == 0 and len(levels) > more
    for command in levels:
        made = build.build_object(command, library.sources, folder)
        listed = subprocess.run(["nm", "--extern-only", "--defined-only", made], capture_output=True, text=True).stdout
        kinds = [line.split()[-2:] for line in listed.splitlines() if "DW.ref" not in line]
        level = command.arguments[-1].removeprefix("-DKERNELS_LEVEL=")
        assert kinds, command.source
        assert all(kind in "RDV" and name.endswith(level + "E") for kind, name in kinds), (command.source, kinds)


def undefined(library: Path) -> set[str]:
    out = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in out.splitlines()}


@needs["cuda"]
def test_kernels_spill_nothing_and_keep_to_their_registers():
    log = (build.build("cuda").parent / "build.log").read_text()
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert len(spills) >= 70 and set(spills) == {("0", "0")}
    assert max(int(count) for count in re.findall(r"Used (\d+) registers", log)) <= MAX_REGISTERS


@needs["cpu"]
@pytest.mark.parametrize("level", build.CPU_LEVELS)
def test_levels_of_instructions_are_chosen_at_run_time(level):
    script = (
        "import ctypes, kernels.build; library = ctypes.CDLL(str(kernels.build.build('cpu')));"
        "print(f'v{library.kernels_cpu_level()}')"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "KERNELS_CPU_LEVEL": level}
    script = "import torch; " + script
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    available = {
        "v2",
        *(["v3"] if torch.cpu._is_avx2_supported() else []),
        *(["v4"] if torch.cpu._is_avx512_supported() else []),
    }
    assert done.stdout.strip() == (level if level in available or level == "generic" else max(available))
