#!/usr/bin/env bash
# Run one search on three GPUs. Each task of the array runs trials until all trials are done.
#
#   sbatch slurm/search.sh                                    jobs/search.toml
#   sbatch slurm/search.sh jobs/imbalance.toml                another search
#   sbatch --array=1-8%4 slurm/search.sh                      8 tasks; set tasks = 8 in the job file
#
# Submit from the project's folder. Each task requests one GPU, 4 cores, 6 GB and 4 hours. At the time limit, it
# saves its work and is requeued. slurm/site.env.example has account, partition and modules of your site.
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
