"""Packages, package data and the kernel libraries; names, versions and dependencies are in pyproject.toml."""

import importlib.util
import shutil
import sys
import traceback
from pathlib import Path

from setuptools import Command, Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent


def load_builder():
    """kernels/build.py, which imports no torch: pip hides it from what it builds in isolation."""
    spec = importlib.util.spec_from_file_location("kernels_build", ROOT / "kernels" / "build.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT))  # for what it imports of its package
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT))
    return module


class BuildKernels(Command):
    """Build the kernel libraries for which there are compilers; what fails is said, and built at the first use.

    An editable install leaves them in the checkout, another one takes them along.
    """

    description = "build the kernel libraries"
    user_options = ()
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None
        self.libraries = []

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        builder = load_builder()
        for name in builder.FOR_RUNS:
            if reason := builder.missing(name) or builder.torch_missing():
                print(f"kernels: the {name} library is not built: {reason}", file=sys.stderr)
                continue
            try:
                self.libraries.append(builder.build(name).parent)
            except Exception as error:  # of any kind: an installation without them works
                frame = "*" * 100
                print(f"{frame}\nkernels: NOT BUILT, torch's own operators run: {error}\n{frame}", file=sys.stderr)
                if not isinstance(error, builder.BuildError):
                    traceback.print_exc()
        if not self.editable_mode:
            for library in self.libraries:
                shutil.copytree(library, self._target(library), dirs_exist_ok=True)

    def _target(self, library):
        return Path(self.build_lib) / "kernels" / "built" / library.name

    def get_source_files(self):
        return [
            str(path.relative_to(ROOT)) for path in sorted((ROOT / "kernels" / "csrc").rglob("*")) if path.is_file()
        ]

    def get_outputs(self):
        return [str(self._target(library) / path.name) for library in self.libraries for path in library.iterdir()]

    def get_output_mapping(self):
        return {}


class Build(build):
    """With the kernel libraries."""

    sub_commands = [*build.sub_commands, ("build_kernels", None)]  # noqa: RUF012 as in setuptools


class Platform(Distribution):
    """Something for this platform, if not by extension modules."""

    def has_ext_modules(self):
        return True


class Wheel(bdist_wheel):
    """A wheel for this platform and any Python: the libraries' ABIs are C and torch's stable one."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    packages=find_packages(include=["engine*", "finetune*", "kernels*", "preprocess*"]),
    package_dir={
        "": "."
    },  # an editable install then puts the checkout itself on the path, packages added later included
    package_data={
        "engine": ["presets/*.yaml", "recipes/*.yaml"],
        "finetune": ["suites/*.yaml"],
        "kernels": ["measured.json", "csrc/*/*"],
    },
    distclass=Platform,
    cmdclass={"build": Build, "build_kernels": BuildKernels, "bdist_wheel": Wheel},
)
