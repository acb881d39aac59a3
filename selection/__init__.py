"""Which models an application asks, how their answers are joined, and what feedback teaches."""
