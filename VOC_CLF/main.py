#!/usr/bin/env python3
"""Score a frozen encoder on VOC2007 classification: mAP per class, by a linear layer or SVMs.

cd VOC_CLF && python3 main.py --data=../datasets/voc --pretrained=../input.pth.tar
python3 VOC_CLF/main.py --protocol svm --data=./datasets/voc --pretrained=./input.pth.tar
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from any folder

from ops.arguments import command
from VOC_CLF.options import VocConfig


def score(config: VocConfig) -> int:
    # Imports torch: a wrong option is answered before that.
    from VOC_CLF.run import run

    return run(config)


main = command("VOC_CLF/main.py", VocConfig, score)


if __name__ == "__main__":
    sys.exit(main())
