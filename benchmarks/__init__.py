"""How fast it is, what learns best, and what a run survives."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def print_row(*cells) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*names: str) -> None:
    print_row(*names)
    print_row(*("---" for _ in names))
