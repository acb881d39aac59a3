"""What the broker decides: who is a member, which models and applications there are, which version is current."""
