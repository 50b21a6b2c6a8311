"""Every operation in plain torch, in any floating type, float64 too: what the other backends are compared with."""
