"""The blocks that architectures are made of."""
