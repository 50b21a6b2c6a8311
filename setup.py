"""Packages and package data; names, versions and dependencies are in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["engine*", "finetune*", "kernels*", "preprocess*"]),
    package_dir={
        "": "."
    },  # an editable install then puts the checkout itself on the path, packages added later included
    package_data={"engine": ["presets/*.yaml", "recipes/*.yaml"]},
)
