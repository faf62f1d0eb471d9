#!/usr/bin/env bash
# Run one search on three GPUs: each task of the array runs trials until all are done.
#
#   sbatch slurm/search.sh                                    jobs/search.toml
#   sbatch slurm/search.sh jobs/imbalance.toml                another search
#   sbatch --array=1-8%4 slurm/search.sh                      more tasks; the job's `tasks` must be as many
#
# Submit from the project's folder. Each task requests one GPU, 4 cores, 6 GB and 4 hours; it saves and is requeued
# at the time limit. slurm/site.env.example has account, partition and modules of your site.
#SBATCH --job-name=wsi-idc-search
#SBATCH --array=1-3
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
run_job jobs/search.toml "$@"
