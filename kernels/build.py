"""Compile the kernel libraries: C++ with the host's compiler, CUDA with nvcc, each once for each state of its sources.

A library's folder is named by a digest of its sources, flags and compilers, so what is there fits; so are the object
files that it is linked from. Both are made under another name and renamed when they are whole; a file lock, which goes
with its process, keeps ranks that start together from doing the same work, and is not waited for without end: who
builds without it only does work twice. Of torch only the headers and libraries are
needed, not its Python: its ABI is the stable one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from kernels.build_lock import only_one, say

SOURCES = Path(__file__).resolve().parent / "csrc"
TORCH_ABI = "0x020b000000000000"  # the oldest torch that a build serves: 2.11
CPU_LEVELS = ("v2", "v3", "v4") if platform.machine() == "x86_64" else ("generic",)
BF16_LEVEL = "v4bf16"  # v4 and the multiplication of bf16 numbers, for the sources that have one
BF16_SOURCES = ("cpu/attention.cpp",) if "v4" in CPU_LEVELS else ()
CUDA_ARCHITECTURES = ("80", "90")  # and PTX of the last, for what comes later
CUDA_FLAGS = (
    "-std=c++17", "-O3", "-lineinfo", "--Werror", "all-warnings", "-Xptxas", "-v",
    "-Xcompiler", "-fPIC,-fvisibility=hidden",
)  # fmt: skip
FAST = ("-ffast-math", "-fno-finite-math-only")
EXACT = {"cpu/optimizer.cpp": ("-fno-math-errno", "-fno-trapping-math")}  # fast roots of tiny numbers are NaN
HOST_FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
BUILT = "built"  # a folder of the package that an installation fills
MARK = "sources.sha256"  # beside a library: of its sources alone, for where there is no compiler
FOR_RUNS = ("cpu", "cuda")  # the emulator is for tests


class BuildError(RuntimeError):
    """A compiler refused a source, or there is no compiler; the text is what it said."""


@dataclass(frozen=True)
class Command:
    """A call of a compiler that makes an object file of a source; where it goes is added.

    Attributes:
        source: below csrc.
        arguments: compiler and flags.
    """

    source: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Library:
    """What a library is made of.

    Attributes:
        name: cpu, cuda or emulator.
        sources: folders below csrc that it depends on.
        compile: calls that make its objects.
        link: call that makes it of them, without the objects' names.
    """

    name: str
    sources: tuple[str, ...]
    compile: tuple[Command, ...]
    link: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of the shared library."""
        return f"libkernels_{self.name}.so"


def host_compiler() -> str | None:
    """The C++ compiler: ``CXX``, or the first of c++, g++ and clang++ that is there."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None)


def cuda_compiler() -> str | None:
    """nvcc: of ``CUDA_HOME``, in PATH, or where CUDA is installed by itself."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [str(Path(home) / "bin" / "nvcc")] if home else []
    return next(filter(None, map(shutil.which, [*places, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def cuda_include() -> Path | None:
    """The folder of CUDA's headers, which the emulator needs too."""
    nvcc = cuda_compiler()
    places = [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        places.insert(0, Path(home) / "include")
    places.append(Path("/usr/local/cuda/include"))
    return next((place for place in places if (place / "cuda_runtime.h").is_file()), None)


def missing(name: str) -> str | None:
    """Why a library cannot be built here; None where it can."""
    if host_compiler() is None:
        return "there is no C++ compiler (apt-get install g++)"
    if name == "cuda" and cuda_compiler() is None:
        return "there is no nvcc (the CUDA toolkit, or CUDA_HOME)"
    if name == "emulator" and cuda_include() is None:
        return "there are no CUDA headers (the CUDA toolkit, or CUDA_HOME)"
    if name == "emulator" and platform.machine() != "x86_64":
        return "the emulator runs on x86-64 alone"
    return None


def library(name: str) -> Library:
    """How to build a library.

    Raises:
        BuildError: if that is not possible here.
    """
    if reason := missing(name):
        raise BuildError(f"{name} cannot be built: {reason}")
    return {"cpu": _cpu, "cuda": _cuda, "emulator": _emulator}[name]()


def _cpu() -> Library:
    compiler = str(host_compiler())
    commands = [Command("torch/operators.cpp", (compiler, *_torch_flags(), "-DKERNELS_CPU"))]
    for source in _files("cpu", ".cpp", but=("levels.cpp",)):
        for level in (*CPU_LEVELS, *((BF16_LEVEL,) if source in BF16_SOURCES else ())):
            flags = (*EXACT.get(source, FAST), *flags_of_level(level), f"-DKERNELS_LEVEL={level}")
            commands.append(Command(source, (compiler, *HOST_FLAGS, "-O3", "-fopenmp-simd", *flags)))
    commands.append(Command("cpu/levels.cpp", (compiler, *HOST_FLAGS, "-O2")))
    return Library("cpu", ("common", "cpu", "torch"), tuple(commands), (compiler, "-shared", *_torch_libraries()))


def flags_of_level(level: str) -> tuple[str, ...]:
    """The host compiler's flags for the instructions of a level."""
    if level == BF16_LEVEL:
        return ("-march=x86-64-v4", "-mavx512bf16")
    return () if level == "generic" else (f"-march=x86-64-{level}",)


def _cuda() -> Library:
    nvcc, compiler = str(cuda_compiler()), str(host_compiler())
    commands = [Command("torch/operators.cpp", (compiler, *_torch_flags()))]
    commands += [Command(source, (nvcc, *CUDA_FLAGS, *cuda_targets())) for source in _files("cuda", ".cu")]
    link = (nvcc, "-shared", "-cudart", "static", *_for_linker(_torch_libraries()))
    return Library("cuda", ("common", "cuda", "torch"), tuple(commands), link)


def cuda_targets() -> list[str]:
    """nvcc's flags for the GPUs that the library is made for."""
    last = CUDA_ARCHITECTURES[-1]
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in CUDA_ARCHITECTURES]
    return [*targets, f"-gencode=arch=compute_{last},code=compute_{last}"]


def _emulator() -> Library:
    compiler = str(host_compiler())
    commands = [Command(source, (compiler, *emulator_flags())) for source in _files("cuda", ".cu")]
    commands.append(Command("torch/operators.cpp", (compiler, *_torch_flags(), "-DKERNELS_EMULATOR")))
    link = (compiler, "-shared", "-fopenmp", *_torch_libraries())
    return Library("emulator", ("common", "cuda", "emulator", "torch"), tuple(commands), link)


def emulator_flags() -> tuple[str, ...]:
    """Flags of the host's compiler for a CUDA source."""
    # CUDA reads bytes through pointers of other types, which C++ may take for undefined
    plain = ("-std=c++20", "-O2", "-g1", "-fPIC", "-fopenmp", "-fno-strict-aliasing", "-fvisibility=hidden")
    return (*plain, f"-isystem{cuda_include()}", "-x", "c++")


def _files(folder: str, suffix: str, but: Sequence[str] = ()) -> list[str]:
    """Sources below csrc, the longest first: what takes longest should not be what is begun last."""
    found = [path for path in (SOURCES / folder).glob(f"*{suffix}") if path.name not in but]
    return [f"{folder}/{path.name}" for path in sorted(found, key=lambda path: (-path.stat().st_size, path.name))]


def torch_missing() -> str | None:
    """Why torch's headers are not there; None where they are."""
    try:
        _torch_folder()
    except BuildError as error:
        return str(error).removeprefix("kernels: ")
    return None


def _torch_folder() -> Path:
    """Where torch is, whether or not it can be imported: pip hides it from what it builds in isolation.

    Raises:
        BuildError: if it is not there.
    """
    spec = importlib.util.find_spec("torch")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    places.append(str(Path(sysconfig.get_path("purelib")) / "torch"))
    found = next((place for place in places if (Path(place) / "include").is_dir()), None)
    if found is None:
        raise BuildError("torch is not installed, whose headers the libraries need: pip install torch")
    return Path(found).resolve()


def _torch_flags() -> tuple[str, ...]:
    return (*HOST_FLAGS, "-O2", f"-DTORCH_TARGET_VERSION={TORCH_ABI}", f"-isystem{_torch_folder() / 'include'}")


def _torch_libraries() -> tuple[str, ...]:
    return (f"-L{_torch_folder() / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10")


def _for_linker(arguments: Sequence[str]) -> tuple[str, ...]:
    """nvcc hands on to the host's linker what stands behind -Xlinker."""
    return tuple(a if not a.startswith("-Wl,") else f"-Xlinker={a.removeprefix('-Wl,')}" for a in arguments)


def digest(wanted: Library) -> str:
    """What the library depends on, in 16 hexadecimal digits."""
    parts = [object_digest(command, wanted.sources) for command in wanted.compile]
    return _hash(*parts, *map(_shown, wanted.link))


def object_digest(command: Command, folders: Sequence[str]) -> str:
    """What an object file depends on: its source, all headers of these folders, the flags and the compiler."""
    headers = sorted(path for folder in folders for path in (SOURCES / folder).glob("*.h"))
    contents = [path.read_bytes() for path in (SOURCES / command.source, *headers)]
    return _hash(command.source, *contents, *map(_shown, command.arguments), _version(command.arguments[0]))


def sources_digest(name: str) -> str:
    """What a library depends on where there is no compiler to ask: all its sources."""
    places = {"cpu": ("cpu",), "cuda": ("cuda",), "emulator": ("cuda", "emulator")}[name]
    paths = sorted(path for folder in ("common", "torch", *places) for path in (SOURCES / folder).glob("*.*"))
    return _hash(*(part for path in paths for part in (path.name, path.read_bytes())))


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


@cache
def _version(compiler: str) -> bytes:
    return subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout


def _shown(argument: str) -> str:
    """An argument without the folders of this machine: a moved checkout keeps its libraries."""
    return argument.replace(str(_torch_folder()), "torch") if "torch" in argument else argument


def folders() -> list[Path]:
    """Where libraries are looked for: of the package, then of the user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pretraining-engine" / "kernels"
    given = os.environ.get("KERNELS_BUILD_FOLDER")
    return [Path(given).resolve()] if given else [SOURCES.parent / BUILT, cache]


def find(name: str) -> Path | None:
    """The library where it was built; None where it was not, or from other sources."""
    try:
        wanted = library(name)
    except BuildError:  # an installation may have brought it along
        sources = sources_digest(name)
        found = sorted((SOURCES.parent / BUILT).glob(f"{name}-*/libkernels_{name}.so"))
        return next((path for path in found if _made_of(path.parent, sources)), None)
    inside = f"{name}-{digest(wanted)}/{wanted.file}"
    return next((folder / inside for folder in folders() if (folder / inside).is_file()), None)


def _made_of(folder: Path, sources: str) -> bool:
    mark = folder / MARK
    return mark.is_file() and mark.read_text(encoding="utf-8").strip() == sources


def build(name: str) -> Path:
    """The library, compiled where it is not there yet; the first of ``folders`` that can be written takes it.

    Raises:
        BuildError: with what the compiler complained of first, and the file with all that it said.
    """
    if found := find(name):
        return found
    wanted = library(name)
    for folder in folders():
        with contextlib.suppress(PermissionError), only_one(folder, name):
            if found := find(name):
                return found
            try:
                built = _build_into(folder / f"{name}-{digest(wanted)}", wanted)
            except BuildError as error:
                raise _shortened(error, folder / f"{name}.failed.log") from error
            (folder / f"{name}.failed.log").unlink(missing_ok=True)
            return built
    raise BuildError(f"none of {', '.join(map(str, folders()))} can be written; set KERNELS_BUILD_FOLDER")


def _shortened(error: BuildError, log: Path) -> BuildError:
    """The first complaint of a compiler, whose whole text goes to a file."""
    log.write_text(str(error), encoding="utf-8")
    lines = str(error).splitlines()
    complaints = [line for line in lines if re.search(r"\berror\b|/ld:", line, re.IGNORECASE)]
    first = next((line for line in complaints if not line.startswith("collect2:")), lines[-1])
    return BuildError(
        f"the {log.name.partition('.')[0]} library could not be built: {first.strip()} (all of it: {log})"
    )


def failure(name: str) -> str | None:
    """Where the complaints of a build that failed are; None where none did."""
    logs = [folder / f"{name}.failed.log" for folder in folders()]
    return next((f"could not be built: {log}" for log in logs if log.is_file()), None)


def _build_into(folder: Path, wanted: Library) -> Path:
    say(f"building the {wanted.name} library, once")
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            make = partial(build_object, folders=wanted.sources, built=folder.parent)
            objects = list(pool.map(make, wanted.compile))
        said = run_compiler([wanted.link[0], *map(str, objects), *wanted.link[1:], "-o", wanted.file], temporary)
        logs = [each.with_suffix(".log").read_text(encoding="utf-8") for each in objects]
        (temporary / "build.log").write_text("".join([*logs, said]), encoding="utf-8")
        (temporary / MARK).write_text(sources_digest(wanted.name) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was first
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / wanted.file


def build_object(command: Command, folders: Sequence[str], built: Path) -> Path:
    """The object file of a source, compiled where it is not there yet, with what the compiler said beside it.

    Args:
        command: how to compile it.
        folders: below csrc whose headers it may include.
        built: folder whose ``objects`` holds it.

    Raises:
        BuildError: with what the compiler said.
    """
    place = built / "objects" / f"{Path(command.source).stem}-{object_digest(command, folders)}.o"
    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as temporary:
        said = run_compiler([*command.arguments, "-c", str(SOURCES / command.source), "-o", "made.o"], Path(temporary))
        log = Path(temporary) / "made.log"
        log.write_text(said, encoding="utf-8")
        log.replace(place.with_suffix(".log"))
        (Path(temporary) / "made.o").replace(place)
    return place


def run_compiler(arguments: Sequence[str], folder: Path) -> str:
    """Run a compiler in a folder; what it said.

    Raises:
        BuildError: with what it said, if it failed.
    """
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"kernels: {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
