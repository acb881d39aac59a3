"""Where selection state is kept: SQLite on one host, Redis for several."""
