#!/usr/bin/env bash
# Run a job that needs no GPU, such as packing the data or making the report.
#
#   sbatch slurm/cpu.sh                                       jobs/prepare.toml
#   sbatch slurm/cpu.sh jobs/report.toml                      another job
#
# Submit from the project's folder. The job requests 4 cores, 6 GB and 2 hours. It resumes after a requeue.
# slurm/site.env.example has account, partition and modules of your site.
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
