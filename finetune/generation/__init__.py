"""Text from models: one token after another, with keys and values kept."""
