"""Stands in for transformers where this folder is first in PYTHONPATH: a runtime without it."""

raise ModuleNotFoundError("transformers is hidden by tests/without", name="transformers")
