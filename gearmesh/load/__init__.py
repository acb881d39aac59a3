"""Load on a mesh: plans of requests, generator processes, and what to make of what came back."""
