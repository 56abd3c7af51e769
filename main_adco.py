#!/usr/bin/env python3
r"""Pre-train an encoder against learnable adversaries (AdCo, arXiv:2011.08435).

python3 main_adco.py --sym=1 --lr=0.03 --memory_lr=3 --moco_t=0.12 --mem_t=0.02 \
    --data=./datasets/imagenet2012
python3 main_adco.py --dataset digits          # embedded data, minutes on a CPU
torchrun --nproc_per_node 8 main_adco.py --data ./datasets/imagenet2012
"""

import sys

from ops.signals import end_by_requests


def main(argv=None) -> int:
    if argv is None:
        end_by_requests()
    # Imported here, when Ctrl-C already ends the script without a traceback.
    from adco.pretrain.options import PRESETS, PretrainConfig
    from ops.arguments import command

    return command("main_adco.py", PretrainConfig, pretrain, PRESETS)(argv)


def pretrain(config) -> int:
    from adco.pretrain.run import run  # torch is imported here: a bad flag is answered before
    from ops.launch import launch

    return launch(run, config)


if __name__ == "__main__":
    sys.exit(main())
