"""Devices, models and loads on paper: scenarios, arrivals, upper bounds, reports. `gearmesh/cli/simulate.py` runs them."""
