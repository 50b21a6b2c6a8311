"""Fine-tune pretrained models on labelled text, and predict with them.

from finetune import load
model = load("runs/reviews")
print(model.predict(["A book to read twice."]))
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.library import LoadedModel


def load(model: str | PathLike[str]) -> LoadedModel:
    """A model folder, or the newest model of a run folder, for all that the inference tools do.

    Raises:
        ValueError: if there is none.
    """
    from finetune.library import LoadedModel  # torch takes seconds to import

    return LoadedModel(str(model))
