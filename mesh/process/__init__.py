"""What every process has: settings, logs, a loop, alarms, and a way to say that it serves."""
