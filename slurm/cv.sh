#!/usr/bin/env bash
# Five-fold cross-validation by patient, one fold per task.
#
#   sbatch slurm/cv.sh                                        jobs/cv5.toml
#   sbatch slurm/cv.sh --model resnet18                       a setting that replaces the job's
#   sbatch --array=2 slurm/cv.sh                              the second fold again
#
# Submit from the project's folder. Each task requests one GPU, 4 cores, 6 GB and 4 hours. At the time limit, it
# saves its work and is requeued. After all tasks, run `wsi-idc eval runs/cv5-*`.
# slurm/site.env.example has account, partition and modules of your site.
#SBATCH --job-name=wsi-idc-cv5
#SBATCH --array=1-5
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
run_job jobs/cv5.toml "$@"
