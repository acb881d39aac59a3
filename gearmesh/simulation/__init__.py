"""Devices, models and loads on paper: scenarios, arrivals, upper bounds, reports. `gearmesh simulate` runs them."""

from mesh.process.compiled import install

install()
