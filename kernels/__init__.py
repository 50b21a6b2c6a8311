"""Fused operations of transformer training: one contract, backends reference, cpu, cuda, emulator and apex."""
