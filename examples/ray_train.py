"""Pre-training on the workers of Ray Train; a worker that dies is started again, and goes on.

python3 examples/ray_train.py 8 --resume auto --data /data/imagenet2012 --save_path /runs

The number of workers comes first, then the options of main_adco.py. Paths are absolute: Ray starts
its workers in a folder of its own.
"""

import sys
from pathlib import Path

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

ROOT = Path(__file__).resolve().parent.parent


def train(options: dict) -> None:
    """One worker: Ray has made the process group, and the run uses it."""
    from adco.pretrain.options import PRESETS, PretrainConfig
    from adco.pretrain.run import run
    from ops.arguments import parse
    from ops.launch import launch

    code = launch(run, parse(PretrainConfig, options["words"], PRESETS))
    if code:
        raise RuntimeError(f"the run was stopped, and has saved (code {code})")


if __name__ == "__main__":
    num_workers, *words = sys.argv[1:]
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    TorchTrainer(
        train,
        train_loop_config={"words": words},
        scaling_config=ScalingConfig(
            num_workers=int(num_workers), use_gpu=torch.cuda.is_available()
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()
