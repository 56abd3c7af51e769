"""Measurements. One script each: python3 -m benchmarks.rounds and its neighbours."""
