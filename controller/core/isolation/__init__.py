"""One request must not harm another: batches that fail are tried apart, and who makes them fail is kept apart."""
