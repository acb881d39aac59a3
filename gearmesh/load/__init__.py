"""Load on a mesh: plans of requests, generator processes, and reports of the results."""
