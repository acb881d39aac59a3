"""Whether a model may be served: what its author's code and its graph do, seen before anything is written."""
