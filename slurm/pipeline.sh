#!/usr/bin/env bash
# Submit all steps: prepare, train, evaluate, map, report. Each step starts after the step before has succeeded.
#
#   bash slurm/pipeline.sh                                    jobs/train.toml, data in data/
#   bash slurm/pipeline.sh jobs/train_resnet50.toml           another training
#   bash slurm/pipeline.sh jobs/train.toml --time=12:00:00    flags of sbatch for every step
#
# Start this script on the login node, in the project's folder. It submits the steps and ends. `sbatch` can start it
# too. The step prepare is skipped if data/ has a pack or WSI_IDC_DATA is set. If a step fails, SLURM cancels the
# later steps. Then fix the cause and start this script again: finished work is kept. If the job has several
# trainings, all runs are evaluated, and the first run makes the maps. Each step has the resources of its script.
#SBATCH --job-name=wsi-idc-pipeline
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
# If this script runs inside a job, the steps must not get the variables of this job.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done
job=jobs/train.toml
if [[ ${1:-} == *.toml ]]; then
    job=$1
    shift
fi
flags=("$@")
status=$("${program[@]}" status "$job" --json) # a separate assignment, so that a failure ends the script
if [[ $status != *'"command": "train"'* ]]; then
    echo "Error: $job trains no model, so the later steps have no runs; give a job file with command = \"train\"" >&2
    exit 1
fi
mapfile -t runs < <(sed -n 's/^ *"out": "\(.*\)",$/\1/p' <<<"$status")

last=
step() { # SCRIPT JOB.toml ARGUMENTS...: submit a step that starts after the step before
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
