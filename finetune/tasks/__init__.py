"""Fine-tuning tasks: head, features, metric and decoding in one file each."""
