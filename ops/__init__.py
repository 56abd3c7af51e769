"""Plumbing that knows nothing of the method: arguments, processes, checkpoints, logs, schedules."""
