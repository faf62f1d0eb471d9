#!/usr/bin/env bash
# Train on one GPU, as long as it takes: saves and requeues itself before each time limit.
#
#   sbatch slurm/train.sh                       wsi-idc train with its defaults, data in data/
#   sbatch slurm/train.sh --model resnet50      what follows goes to wsi-idc train
#   sbatch --time=12:00:00 slurm/train.sh       sbatch's own flags win over those below
#
# Submit from the folder that holds data/ (and .venv/, if the program is installed there). Account,
# partition and modules of your site: give them to sbatch, or put them into SBATCH_* variables.
#SBATCH --job-name=wsi-idc-train
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail

max_restarts=20
stopped_and_saved=75

if [[ -f .venv/bin/activate ]]; then
    source .venv/bin/activate
fi
export PYTHONUNBUFFERED=1

# Under srun the signal ahead of the limit reaches Python; a plain child would not get it.
status=0
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" wsi-idc train "$@" || status=$?
if [[ $status -eq $stopped_and_saved && ${SLURM_RESTART_COUNT:-0} -lt $max_restarts ]]; then
    echo "saved; asking for another turn (restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $max_restarts)"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
