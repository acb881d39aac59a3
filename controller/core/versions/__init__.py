"""Versions of models on the devices of a shard: wanted, prepared, measured, served, given up."""
