"""An operator's side of a running mesh: calls to the broker, and a look at every service."""
