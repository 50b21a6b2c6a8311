"""Token sequences of texts, windows over long ones, and what stands for spans in them."""
