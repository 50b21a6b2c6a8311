"""The CPU kernels under sanitizers, without torch: no access outside an array, no conversion that C++ leaves open."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernels import build

pytestmark = pytest.mark.skipif(build.missing("cpu") is not None, reason=str(build.missing("cpu")))
LEVEL = build.CPU_LEVELS[0]  # sanitizers look at what is written in C++, which is the same at each
DRIVERS = {  # for a level: how pairs of bf16 numbers are laid out is there only where a CPU multiplies them
    ("sanitized_cpu.cpp", LEVEL): ("activation", "cross_entropy"),
    ("sanitized_attention.cpp", LEVEL): ("attention",),
    ("sanitized_attention.cpp", build.BF16_LEVEL): ("attention",),
}
# What no number stands for is no part of "undefined":
SANITIZERS = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all", "-O1", "-g1")


@pytest.fixture(scope="module")
def compile_one(tmp_path_factory):
    """Compiles a source once, into an object file."""
    made: dict[tuple[str, str], Path] = {}

    def compile_source(source: Path, level: str, text: str | None = None) -> Path:
        text = text or source.read_text()
        if (text, level) not in made:
            folder = tmp_path_factory.mktemp(source.stem)
            (folder / source.name).write_text(text.replace('"../common/', '"'))
            flags = (*build.HOST_FLAGS, *build.FAST, *SANITIZERS, "-fopenmp-simd", f"-DKERNELS_LEVEL={level}")
            places = [f"-I{build.SOURCES / name}" for name in ("cpu", "common")]
            made[text, level] = folder / "one.o"
            command = [*flags, *build.flags_of_level(level), *places, "-c", str(folder / source.name)]
            command += ["-o", str(made[text, level])]
            build.run_compiler([str(build.host_compiler()), *command], folder)
        return made[text, level]

    return compile_source


def run(
    compile_one, folder: Path, driver: str, mutants: dict[str, str], level: str = LEVEL
) -> subprocess.CompletedProcess[str]:
    """Link and run a driver, with other texts for some operations."""
    sources = [build.SOURCES / "cpu" / f"{operation}.cpp" for operation in DRIVERS[driver, level]]
    objects = [compile_one(source, level, mutants.get(source.stem)) for source in sources]
    objects.append(compile_one(Path(__file__).with_name(driver), level))
    objects.append(compile_one(build.SOURCES / "cpu" / "levels.cpp", LEVEL))
    program = folder / "program"
    command = [str(build.host_compiler()), *SANITIZERS, *map(str, objects), "-o", str(program)]
    build.run_compiler(command, folder)
    return subprocess.run([program], capture_output=True, text=True, check=False, timeout=100)


@pytest.mark.parametrize(("driver", "level"), DRIVERS)
def test_sanitizers_find_nothing(driver, level, compile_one, tmp_path):
    if level == build.BF16_LEVEL and "avx512_bf16" not in Path("/proc/cpuinfo").read_text().split():
        pytest.skip("this CPU does not multiply bf16 numbers")
    done = run(compile_one, tmp_path, driver, {}, level)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("driver", "source", "old", "new", "said"),
    [
        (
            "sanitized_cpu.cpp",
            "cross_entropy",
            "power_of_whole(n)",
            "static_cast<float>(static_cast<int32_t>(n))",
            "outside the range of representable values",
        ),
        (
            "sanitized_cpu.cpp",
            "cross_entropy",
            "gradient[label] = from_float<T>((values",
            "gradient[50 * width] = from_float<T>((values",
            "buffer-overflow",
        ),
        (
            "sanitized_attention.cpp",
            "attention",
            "in_.size, out.row(i));",
            "in_.size, out.row(i + 1));",
            "buffer-overflow",
        ),
    ],
    ids=["cast", "write", "row"],
)
def test_sanitizers_find_what_is_put_there(driver, source, old, new, said, compile_one, tmp_path):
    text = (build.SOURCES / "cpu" / f"{source}.cpp").read_text()
    assert text.count(old) == 1
    done = run(compile_one, tmp_path, driver, {source: text.replace(old, new)})
    assert done.returncode != 0 and said in done.stderr
