#!/usr/bin/env python3
"""Make a pre-trained encoder readable for detectron2, which itself is not needed here.

python3 convert-pretrain-to-detectron2.py input.pth.tar output.pkl
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from any folder

from adco.export import main
from ops.errors import InputError, reported, steady_streams

if __name__ == "__main__":
    steady_streams()
    name = Path(__file__).name
    with reported(name):
        if any(word.split("=")[0] == "--to" for word in sys.argv):
            raise InputError("it converts for detectron2 only; without --to, or adco.export --to")
    sys.exit(main([*sys.argv[1:], "--to", "detectron2"], name))
