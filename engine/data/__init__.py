"""Rows of text, their order, and packed batches."""
