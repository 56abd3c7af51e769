"""Pre-training on SLURM through submitit, from a Python prompt or a script on the login node.

python3 examples/submitit_run.py 2 --resume auto --data /data/imagenet2012 --save_path /runs

The number of nodes comes first, then the options of main_adco.py. One task runs on each GPU. A job
that reaches its time limit is queued again, and goes on from what it saved last (--save_minutes).
"""

import sys
from pathlib import Path

import submitit

ROOT = Path(__file__).resolve().parent.parent


class Pretraining(submitit.helpers.Checkpointable):
    """One task of the job. Before the time limit submitit queues the same call again."""

    def __call__(self, words: list[str]) -> int:
        sys.path.insert(0, str(ROOT))
        from adco.pretrain.options import PRESETS, PretrainConfig
        from adco.pretrain.run import run
        from ops.arguments import parse
        from ops.launch import launch

        # srun's environment says which task of how many this is.
        return launch(run, parse(PretrainConfig, words, PRESETS))


if __name__ == "__main__":
    num_nodes, *words = sys.argv[1:]
    executor = submitit.AutoExecutor(folder="submitit_logs")
    executor.update_parameters(
        nodes=int(num_nodes), gpus_per_node=8, tasks_per_node=8, cpus_per_task=8, timeout_min=1440
    )
    print(executor.submit(Pretraining(), words).job_id)
