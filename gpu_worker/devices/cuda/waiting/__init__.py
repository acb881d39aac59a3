"""Threads that wait for a GPU in C, and who observes that they do not wait for ever."""
