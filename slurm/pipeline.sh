#!/usr/bin/env bash
# All steps: prepare, train, evaluate, map, report; each starts after the previous one has succeeded.
#
#   bash slurm/pipeline.sh                                    jobs/train.toml, data in data/
#   bash slurm/pipeline.sh jobs/train_resnet50.toml           another training
#   bash slurm/pipeline.sh jobs/train.toml --time=12:00:00    flags of sbatch for every step
#
# Start it on the login node, in the project's folder; it submits the steps and ends. `sbatch` can start it too.
# The step prepare is skipped if data/ has a pack or WSI_IDC_DATA is set. If a step fails, SLURM cancels the later
# ones; fix the cause and start this again: finished work is kept. With several trainings each is evaluated, and the
# first one maps. The script of a step has its resources.
#SBATCH --job-name=wsi-idc-pipeline
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
# Inside a job: the variables of that job must not apply to the steps.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done
job=jobs/train.toml
if [[ ${1:-} == *.toml ]]; then
    job=$1
    shift
fi
flags=("$@")
status=$(wsi-idc status "$job" --json) # a separate assignment, so that a failure ends the script
if [[ $status != *'"command": "train"'* ]]; then
    echo "Error: $job is no training, so the steps after it have no runs; give a job file with command = \"train\"" >&2
    exit 1
fi
mapfile -t runs < <(sed -n 's/^ *"out": "\(.*\)",$/\1/p' <<<"$status")

last=
step() { # SCRIPT JOB.toml ARGUMENTS...: submit a step after the last one
    local name after=()
    name=$(basename "$2" .toml)
    if [[ -n $last ]]; then
        after=("--dependency=afterok:$last" --kill-on-invalid-dep=yes)
    fi
    last=$(sbatch --parsable --job-name="wsi-idc-$name" ${after[@]+"${after[@]}"} ${flags[@]+"${flags[@]}"} "$@")
    last=${last%%;*}
    echo "$name: job $last${after[0]:+, after ${after[0]##*:}}"
}

if [[ -z ${WSI_IDC_DATA:-} ]] && ! compgen -G "data/*.h5" >/dev/null; then
    step slurm/cpu.sh jobs/prepare.toml
fi
step slurm/train.sh "$job"
step slurm/eval.sh jobs/eval.toml "${runs[@]}"
step slurm/map.sh jobs/map_all.toml --checkpoint "${runs[0]}"
step slurm/cpu.sh jobs/report.toml
