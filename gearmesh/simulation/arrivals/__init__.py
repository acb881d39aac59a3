"""When which model is asked: generated from a seed, or recorded."""
