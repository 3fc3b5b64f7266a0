"""Health: gates before training and alarms during it."""
