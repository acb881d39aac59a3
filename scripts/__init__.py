"""What a person starts, on top of everything: the CLI, the demo, load and benchmark scripts."""
