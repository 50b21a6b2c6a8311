"""torch.compile for the layers of a transformer."""

from __future__ import annotations

import torch

from engine.models.attention import Attention
from engine.models.model import Model
from engine.models.transformer import Layer


def compile_layers(model: Model) -> None:
    """Have torch.compile fuse what each layer does round its attention; parameters keep their names.

    All layers share the same compiled code, for any number of tokens. Attention stays as it is: it has kernels of its
    own, and the lengths of its sequences are new in every batch. Dropout draws what it draws without compilation, so
    that a run may be begun with it and go on without. At ZeRO stage 3 the calls that gather the weights cut the code
    into small pieces, and little is gained.
    """
    for module in model.encoder.modules():
        if isinstance(module, Attention):
            module.attend = torch.compiler.disable(module.attend)
        elif isinstance(module, Layer):
            vars(module)["forward"] = torch.compile(module.forward, dynamic=True, options={"fallback_random": True})
