#!/usr/bin/env bash
# A job that needs no GPU, such as packing the data or making the pages.
#
#   sbatch slurm/cpu.sh                                       jobs/prepare.toml
#   sbatch slurm/cpu.sh jobs/report.toml                      another job
#
# Submit from the project's folder. It asks for what stands below: 4 cores, 6 GB, 2 hours; it goes on
# where it was if it must be requeued. Account, partition and modules of your site: slurm/site.env.example.
#SBATCH --job-name=wsi-idc-prepare
#SBATCH --cpus-per-task=4
#SBATCH --mem=6G
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
run_job jobs/prepare.toml "$@"
