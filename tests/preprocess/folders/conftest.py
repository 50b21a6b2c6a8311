"""Shard folders of known documents."""

from tests.preprocess.folders.shard_documents import make_folder  # noqa: F401  (a fixture)
