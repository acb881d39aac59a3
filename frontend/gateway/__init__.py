"""HTTP for the mesh: the Open Inference Protocol v2, metrics and a dashboard, in a process of its own."""
