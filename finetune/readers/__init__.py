"""Readers of labelled files: tables, sentences with labels, questions, choices."""
