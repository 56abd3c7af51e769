#!/usr/bin/env python3
"""Train and test the C4 detectors of configs/ with detectron2 0.6.

python train_net.py --config-file configs/pascal_voc_R_50_C4_24k_adco.yaml --num-gpus 8 \
    MODEL.WEIGHTS ./output.pkl
The data sets are looked for in $DETECTRON2_DATASETS (default ./datasets).
"""

import sys
from importlib.util import find_spec

NEEDED = (
    "train_net.py: error: detectron2 is not installed; install it with: python3 -m pip install "
    "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)


def setup(options):
    """The frozen configuration: the file, then what the command line adds."""
    from detectron2.config import get_cfg
    from detectron2.engine import default_setup

    cfg = get_cfg()
    cfg.merge_from_file(options.config_file)
    cfg.merge_from_list(options.opts)
    cfg.freeze()
    default_setup(cfg, options)
    return cfg


def run(options):
    """One process of a training, or with --eval-only of a test. Returns the scores."""
    from detector import Trainer  # beside this file; registers the ROI head
    from detectron2.checkpoint import DetectionCheckpointer

    cfg = setup(options)
    if options.eval_only:
        model = Trainer.build_model(cfg)
        weights = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        weights.resume_or_load(cfg.MODEL.WEIGHTS, resume=options.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=options.resume)
    return trainer.train()


def main() -> int:
    if find_spec("detectron2") is None:
        print(NEEDED, file=sys.stderr)
        return 2
    from detectron2.engine import default_argument_parser, launch

    options = default_argument_parser().parse_args()
    launch(
        run,
        options.num_gpus,
        num_machines=options.num_machines,
        machine_rank=options.machine_rank,
        dist_url=options.dist_url,
        args=(options,),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
