"""Code points of texts, and which of them are white space."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

UTF_32 = "utf-32-le" if sys.byteorder == "little" else "utf-32-be"

# By code point; all that are higher share the last entry. As str.isspace, str.strip and \s of re have it, by which
# documents and sentences are cut: Unicode's White_Space and the separators 0x1C to 0x1F.
WHITE_SPACE = np.zeros(0x3002, np.bool_)
WHITE_SPACE[[*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B)]] = True
WHITE_SPACE[[0x2028, 0x2029, 0x202F, 0x205F, 0x3000]] = True


def to_code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points [len(text)] of a text; halves of surrogate pairs may stand alone in it."""
    return np.frombuffer(text.encode(UTF_32, "surrogatepass"), np.uint32)


def is_visible(code_points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Return which code points [C] are not white space: [C] bool."""
    visible: npt.NDArray[np.bool_] = ~WHITE_SPACE[np.minimum(code_points, len(WHITE_SPACE) - 1)]
    return visible
