"""What a controller decides: events and `now` in, orders out. The simulator runs the same objects."""
