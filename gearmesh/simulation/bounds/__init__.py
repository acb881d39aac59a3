"""What no scheduler can exceed on given arrivals. docs/design/bounds.md says what each bound proves."""
