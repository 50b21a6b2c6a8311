"""Figures of classes, numbers, answers and texts."""
