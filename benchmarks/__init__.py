"""How fast it is, what learns best, and what a run survives."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
