#!/usr/bin/env bash
# Train one model on several GPUs, also on several nodes.
#
#   sbatch slurm/ddp.sh                                       jobs/train.toml on 2 nodes of 2 GPUs
#   sbatch --nodes=1 --ntasks-per-node=4 --gres=gpu:4 slurm/ddp.sh    4 GPUs of one node
#   sbatch slurm/ddp.sh jobs/train_resnet50.toml              another job
#
# Submit from the project's folder. Each GPU has one process: give --ntasks-per-node and --gres the same number. At
# the time limit, the job saves its work and is requeued.
# slurm/site.env.example has account, partition and modules of your site.
#SBATCH --job-name=wsi-idc-ddp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gres=gpu:2
#SBATCH --cpus-per-task=2
#SBATCH --mem=7G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
run_job jobs/train.toml "$@"
