"""Fine-tuning at chosen checkpoints of a pretraining run: the scores beside the loss."""
