"""Whitening of sentence vectors: a linear map after which they have the mean 0 and no correlations (Su et al. 2021)."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocess.files import open_atomically

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
SMALLEST = 1e-10  # of the largest variance: below it there is only rounding


class Moments:
    """Mean and covariance of vectors that come piece by piece, in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._origin: Float64 | None = None  # near the mean, so that the difference of the sums loses no digits
        self._sum, self._products = np.zeros(size), np.zeros((size, size))

    def add(self, vectors: Float32) -> None:
        """Take more vectors, [n, D]."""
        if self._origin is None:
            self._origin = vectors.mean(0, dtype=np.float64)
        shifted = vectors - self._origin
        self.count += len(shifted)
        self._sum += shifted.sum(0)
        self._products += shifted.T @ shifted

    def mean_and_covariance(self) -> tuple[Float64, Float64]:
        """[D] and [D, D], of all vectors so far; divided by their number."""
        assert self._origin is not None
        mean = self._sum / self.count
        return self._origin + mean, self._products / self.count - np.outer(mean, mean)


@dataclass(frozen=True)
class Whitening:
    """(x - mean) @ matrix.

    Attributes:
        mean: [D].
        matrix: [D, k], for the k components of the largest variance.
    """

    mean: Float64
    matrix: Float64

    @classmethod
    def fit(cls, moments: Moments, size: int) -> Whitening:
        """The map of arXiv:2103.15316, section 4: U * variance^(-1/2), its first columns.

        Raises:
            ValueError: if the vectors do not span that many dimensions.
        """
        mean, covariance = moments.mean_and_covariance()
        variances, vectors = np.linalg.eigh(covariance)
        variances, vectors = variances[::-1], vectors[:, ::-1]
        rank = int((variances > SMALLEST * variances[0]).sum()) if variances[0] > 0 else 0
        if size > rank:
            raise ValueError(
                f"whitening is {size}, and the vectors of {moments.count:,} texts of {len(mean)} numbers each span "
                f"{rank} dimensions; give at most that, or more texts"
            )
        return cls(mean, vectors[:, :size] / np.sqrt(variances[:size]))

    def __call__(self, vectors: Float32) -> Float32:
        """[n, D] to [n, k]."""
        return ((vectors - self.mean) @ self.matrix).astype(np.float32)

    def save(self, path: Path, vectors: Mapping[str, Any]) -> None:
        """Write a .npz file; ``vectors`` says how those that it was made from were made, as a JSON tree."""
        with open_atomically(path) as file:
            np.savez(file, mean=self.mean, matrix=self.matrix, vectors=np.array(json.dumps(vectors)))

    @classmethod
    def load(cls, path: str, hidden_size: int, vectors: Mapping[str, Any]) -> Whitening:
        """Read what ``save`` wrote; no pickle is loaded.

        Args:
            path: the file.
            hidden_size: numbers of a vector.
            vectors: how the vectors to map are made.

        Raises:
            ValueError: if it is no such file, or of vectors of another size or made in another way.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, matrix, made = file["mean"], file["matrix"], json.loads(str(file["vectors"]))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"--whitening_from {path}: no file that --whitening wrote ({error})") from None
        if mean.shape != (hidden_size,) or matrix.ndim != 2 or matrix.shape[0] != hidden_size:
            raise ValueError(
                f"--whitening_from {path} is for vectors of {mean.size} numbers; the model's have {hidden_size}"
            )
        if made != vectors:
            differing = [name for name, value in vectors.items() if made.get(name) != value]
            told = ", ".join(f"{name} {made.get(name)} there, {vectors[name]} now" for name in differing)
            raise ValueError(f"--whitening_from {path} is for vectors that were made in another way: {told}")
        return cls(mean, matrix)
