"""Devices, models and loads on paper: scenarios, arrivals, upper bounds, reports. `scripts/simulate.py` runs them."""
