#!/usr/bin/env bash
# Map every patient, or slides, in four parallel parts.
#
#   sbatch slurm/map.sh                                       jobs/map_all.toml
#   sbatch slurm/map.sh jobs/slides.toml                      the slides in a CSV file
#   sbatch slurm/map.sh jobs/map_all.toml --checkpoint runs/mine
#   sbatch --array=3 slurm/map.sh                             the third part again; existing maps are kept
#
# Submit from the project's folder. Each task requests one GPU, 4 cores, 6 GB and 2 hours. At the time limit, it
# saves its work and is requeued. slurm/site.env.example has account, partition and modules of your site.
#SBATCH --job-name=wsi-idc-map_all
#SBATCH --array=1-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
run_job jobs/map_all.toml "$@"
