#!/usr/bin/env bash
# The whole job: prepare, train, evaluate, map, report, each step after the one before has succeeded.
#
#   bash slurm/pipeline.sh                                    jobs/train.toml, data in data/
#   bash slurm/pipeline.sh jobs/train_resnet50.toml           another training
#   bash slurm/pipeline.sh jobs/train.toml --time=12:00:00    what follows goes to sbatch, for every step
#
# Start it on the login node, in the project's folder; it submits the steps and ends. `sbatch` may start it
# too. prepare is left out where data/ (or WSI_IDC_DATA) holds a pack. Where a step fails, SLURM cancels
# those after it; mend it and start this again: what is done is kept. What each step asks for stands in
# its script.
#SBATCH --job-name=wsi-idc-pipeline
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.out
set -euo pipefail
if [[ -f slurm/site.env ]]; then
    # shellcheck source=/dev/null
    source slurm/site.env
fi
job=jobs/train.toml
if [[ ${1:-} == *.toml ]]; then
    job=$1
    shift
fi

last=
step() { # NAME SCRIPT ARGUMENTS...: submit a step behind the last one
    local name=$1 script=$2 after=()
    shift 2
    if [[ -n $last ]]; then
        after=("--dependency=afterok:$last" --kill-on-invalid-dep=yes)
    fi
    last=$(sbatch --parsable --job-name="wsi-idc-$name" "${after[@]}" "${flags[@]}" "$script" "$@")
    last=${last%%;*}
    echo "$name: job $last${after[0]:+, after ${after[0]##*:}}"
}

flags=("$@")
data=${WSI_IDC_DATA:-data}
if ! compgen -G "$data/*.h5" >/dev/null && [[ $data != *.h5 ]]; then
    step prepare slurm/cpu.sh jobs/prepare.toml
fi
step train slurm/train.sh "$job"
step eval slurm/eval.sh jobs/eval.toml
step map slurm/map.sh jobs/map_all.toml
step report slurm/cpu.sh jobs/report.toml
