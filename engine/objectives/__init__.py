"""What a model learns: losses on packed batches."""
