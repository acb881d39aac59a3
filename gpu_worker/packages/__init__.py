"""Model packages: what one declares and stores, how one is written, and what must hold of a model."""
