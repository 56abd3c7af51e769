#!/usr/bin/env python3
r"""Score a pre-trained trunk: linear probe, kNN, logistic regression, fine-tuning.

python3 lincls.py --data=./datasets/imagenet2012 --pretrained=input.pth.tar
python3 lincls.py --dataset=Place205 --sgdr=1 --data=./datasets/places205 --lr=5 \
    --pretrained=input.pth.tar
python3 lincls.py --dataset digits --head knn --pretrained checkpoint_last.pth.tar
"""

import sys

from adco.probe.options import PROBE_PRESETS, ProbeConfig
from ops.arguments import command


def score(config: ProbeConfig) -> int:
    from adco.probe.run import run  # torch is imported here: a bad flag is answered before
    from ops.launch import launch

    return launch(run, config)


main = command("lincls.py", ProbeConfig, score, PROBE_PRESETS)


if __name__ == "__main__":
    sys.exit(main())
