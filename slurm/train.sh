#!/usr/bin/env bash
# Train on one GPU. At the time limit, the job saves its work, is requeued and resumes.
#
#   sbatch slurm/train.sh                                     jobs/train.toml, data in data/
#   sbatch slurm/train.sh jobs/train_resnet50.toml            another job; its tasks run one after the other
#   sbatch --array=1-5 slurm/train.sh jobs/train_all_models.toml      five tasks in parallel
#   sbatch slurm/train.sh --model resnet18 --weights none     settings that replace the job's
#   sbatch --time=12:00:00 slurm/train.sh                     a flag of sbatch overrides the lines below
#
# Submit from the project's folder. The job requests one GPU, 4 cores, 6 GB and 4 hours.
# slurm/site.env.example has account, partition and modules of your site.
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
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
run_job jobs/train.toml "$@"
