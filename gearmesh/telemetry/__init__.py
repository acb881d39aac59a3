"""What happened in a mesh: logs read back, timelines, and the machine that it ran on."""
