"""Fine-tune pretrained models on labelled text, and predict with them."""
