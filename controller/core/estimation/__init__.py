"""How long actions take, and when a lane comes free."""
