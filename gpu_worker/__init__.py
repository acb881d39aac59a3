"""One process per device: does what the controller says, when it says it, or reports at once that it could not."""
