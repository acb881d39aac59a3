"""Devices as the controller plans for them: one interface, two makes."""
