"""Measurements. One script each, one table each: python3 -m benchmarks.step and its neighbours."""
