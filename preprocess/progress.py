"""The progress bar of long steps; silent where nobody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NoReturn

from tqdm import tqdm


@contextlib.contextmanager
def progress_bar(what: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show progress over bytes on a terminal; the value is called with each number of bytes done."""
    with tqdm(total=num_bytes, desc=what, unit="B", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        yield lambda num_bytes: _advance(bar, num_bytes)


def _advance(bar: tqdm[NoReturn], num_bytes: int) -> None:
    bar.update(num_bytes)
