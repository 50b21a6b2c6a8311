"""The models: embeddings, a transformer and heads, composed by an ArchConfig."""
