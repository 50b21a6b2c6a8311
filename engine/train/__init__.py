"""The training loop, its metrics and its evaluation."""
