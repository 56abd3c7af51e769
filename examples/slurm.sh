#!/bin/bash
# One task a GPU on two nodes: sbatch examples/slurm.sh --data /data/imagenet2012
#SBATCH --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --cpus-per-task 8
#SBATCH --time 24:00:00 --requeue --open-mode append --signal USR1@120
source .venv/bin/activate
srun --cpus-per-task 8 python3 main_adco.py --resume auto --global_batch_size 256 "$@"
# 75: stopped by SIGUSR1 before the time limit, and saved.
if [ $? -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
