#!/usr/bin/env python3
"""Score a frozen encoder on VOC2007 classification: mAP per class, by a linear layer or SVMs.

cd VOC_CLF && python3 main.py --data=../datasets/voc --pretrained=../input.pth.tar
python3 VOC_CLF/main.py --protocol svm --data=./datasets/voc --pretrained=./input.pth.tar
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from any folder

from ops.arguments import parse
from ops.errors import reported, steady_streams
from VOC_CLF.options import VocConfig


def main(argv=None, program: str = "VOC_CLF/main.py") -> int:
    with reported(program):
        config = parse(VocConfig, argv)
        # Imports torch: a wrong option is answered before that.
        from VOC_CLF.run import run

        return run(config)


if __name__ == "__main__":
    steady_streams()
    sys.exit(main())
