#!/usr/bin/env bash
# Evaluate on one GPU: metrics, figures, pages.
#
#   sbatch slurm/eval.sh                                      jobs/eval_all.toml: rank the five models
#   sbatch slurm/eval.sh runs/train runs/cv5-kfold-5-0        other runs
#   sbatch slurm/eval.sh jobs/mine.toml                       another job
#
# Submit from the project's folder. The job requests one GPU, 4 cores, 6 GB and 4 hours. After a requeue, it starts
# from the beginning. slurm/site.env.example has account, partition and modules of your site.
#SBATCH --job-name=wsi-idc-eval_all
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
run_job jobs/eval_all.toml "$@"
