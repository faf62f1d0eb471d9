#!/usr/bin/env bash
# The whole job: prepare, train, evaluate, map, report, each step after the one before has succeeded.
#
#   bash slurm/pipeline.sh                                    jobs/train.toml, data in data/
#   bash slurm/pipeline.sh jobs/train_resnet50.toml           another training
#   bash slurm/pipeline.sh jobs/train.toml --time=12:00:00    what follows goes to sbatch, for every step
#
# Start it on the login node, in the project's folder; it submits the steps and ends. `sbatch` may start it
# too. prepare is left out where data/ holds a pack or WSI_IDC_DATA says where the data are. Where a step
# fails, SLURM cancels those after it; mend it and start this again: what is done is kept. Of a job with
# several trainings each is evaluated, and the first one maps. What each step asks for stands in its script.
#SBATCH --job-name=wsi-idc-pipeline
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.out
set -euo pipefail
# shellcheck source=slurm/slurm_job.sh
source slurm/slurm_job.sh
# Where this runs in a job, what SLURM says of it is not for the steps.
for name in "${!SLURM_@}"; do
    [[ $name == SLURM_CONF ]] || unset "$name"
done
job=jobs/train.toml
if [[ ${1:-} == *.toml ]]; then
    job=$1
    shift
fi
flags=("$@")
found=$(wsi-idc status "$job" --json) # by itself, so that its failing ends this
if [[ $found != *'"command": "train"'* ]]; then
    echo "Error: $job is no training, so the steps after it have no runs; give a job file with command = \"train\"" >&2
    exit 1
fi
mapfile -t runs < <(sed -n 's/^ *"out": "\(.*\)",$/\1/p' <<<"$found")

last=
step() { # SCRIPT JOB.toml ARGUMENTS...: submit a step behind the last one
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
