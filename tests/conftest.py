"""For all tests: property tests draw the same examples every time, and a slow machine fails none of them."""

from hypothesis import settings

settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")
