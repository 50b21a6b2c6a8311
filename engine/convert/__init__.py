"""Weights and configurations to and from the layouts of other libraries."""
