"""Inference: predictions, masked words, generated text, embeddings, neighbours; one device, plain torch."""
