"""The training engine: configuration, data, models, objectives, training, checkpoints, conversion."""
