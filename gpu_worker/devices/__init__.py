"""The devices that a worker can drive."""
