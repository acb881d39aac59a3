"""Weights on their way to a GPU: pieces of LOADs, and the gather from pages."""
