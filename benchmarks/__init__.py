"""Measurements. One script each: python3 -m benchmarks.device and its neighbours."""
