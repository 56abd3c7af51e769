#!/usr/bin/env python3
"""Train and test the C4 detectors of configs/ with detectron2 0.6.

python train_net.py --config-file configs/pascal_voc_R_50_C4_24k_adco.yaml --num-gpus 8 \
    MODEL.WEIGHTS ./output.pkl

--config-file FILE       one of configs/
--num-gpus N             GPUs of this machine (1)
--num-machines N         machines; --machine-rank N of this one, --dist-url URL of the first
--resume                 go on from the last checkpoint in OUTPUT_DIR
--eval-only              test MODEL.WEIGHTS, train nothing
NAME VALUE ...           at the end: values of the configuration, as in MODEL.WEIGHTS FILE

VOC2007/, VOC2012/ and coco/ are looked for in $DETECTRON2_DATASETS (default ./datasets).
"""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # ops, from any folder

from ops.errors import InputError, reported

NEEDED = (
    "detectron2 is not installed; install it with: python3 -m pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)


def configuration(options):
    """The file, then what the command line adds."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    try:
        cfg.merge_from_file(options.config_file)
        cfg.merge_from_list(options.opts)
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"{options.config_file} {' '.join(options.opts)}: {error}") from error
    cfg.freeze()
    return cfg


def check(options) -> None:
    """Raise InputError for what the run lacks."""
    from checks import check_config_file, check_data, check_device, check_weights  # imports torch

    check_config_file(options.config_file)
    cfg = configuration(options)
    # A run that goes on has weights of its own.
    if not (options.resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").exists()):
        check_weights(cfg.MODEL.WEIGHTS)
    check_device(cfg.MODEL.DEVICE, options.num_gpus)
    check_data([*(() if options.eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST])


def run(options):
    """One process of a training, or with --eval-only of a test. Returns the scores."""
    from detector import Trainer  # beside this file; registers the ROI head
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.engine import default_setup

    cfg = configuration(options)
    default_setup(cfg, options)
    if options.eval_only:
        model = Trainer.build_model(cfg)
        weights = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        weights.resume_or_load(cfg.MODEL.WEIGHTS, resume=options.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=options.resume)
    return trainer.train()


def main() -> int:
    is_here = find_spec("detectron2") is not None
    if not is_here and {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    with reported("train_net.py"):
        if not is_here:
            raise InputError(NEEDED)
        from detectron2.engine import default_argument_parser, launch

        options = default_argument_parser().parse_args()
        check(options)
    machines = (options.num_machines, options.machine_rank, options.dist_url)
    launch(run, options.num_gpus, *machines, args=(options,))
    return 0


if __name__ == "__main__":
    sys.exit(main())
