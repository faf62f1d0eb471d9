# shellcheck shell=bash
# What the SLURM scripts share: they end in `turn_job JOB.toml`.

# Ahead of the time limit, or when a job of a higher partition takes the node, the program gets a signal,
# saves, and leaves with 75. The job then puts itself back into the queue and goes on where it was, at most
# WSI_IDC_MAX_RESTARTS times (50). After `scancel` it does not come back.

set +u # what others have written may use what is not set
if [[ -f slurm/site.env ]]; then
    # shellcheck source=/dev/null
    source slurm/site.env
fi
if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi
set -u
if ! command -v wsi-idc >/dev/null; then
    echo "Error: no wsi-idc on $(hostname), in .venv/ of $PWD or on PATH; submit from the project's folder," \
        "or load it in slurm/site.env" >&2
    exit 1
fi
export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take it from sbatch by itself

# A job that was submitted from inside another one has inherited what SLURM said of that one.
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] &&
    ! scontrol show job "$SLURM_JOB_ID" | grep -qw "ArrayTaskId=$SLURM_ARRAY_TASK_ID"; then
    unset SLURM_ARRAY_TASK_ID SLURM_ARRAY_JOB_ID
fi
if [[ -n ${SLURM_MEM_PER_NODE:-} ]]; then
    unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU
fi

# The job of a script is its own one, unless the first argument names another: turn_job OWN.toml "$@"
turn_job() {
    local job=$1
    shift
    if [[ ${1:-} == *.toml ]]; then
        job=$1
        shift
    fi
    # By this `wsi-idc status` finds the job in the queue.
    scontrol update "jobid=$SLURM_JOB_ID" "Comment=wsi-idc job $job" || true
    turn wsi-idc job "$job" ${SLURM_ARRAY_TASK_ID:+--task="$SLURM_ARRAY_TASK_ID"} "$@"
}

turn() {
    local saved=75 killed_at_start=138 most=${WSI_IDC_MAX_RESTARTS:-50} restarts=${SLURM_RESTART_COUNT:-0} status=0
    # Only what srun starts gets the signal ahead of the limit.
    srun "$@" || status=$?
    # 138 is 128 + SIGUSR1: it came before the program was ready for it.
    if [[ $status -ne $saved && $status -ne $killed_at_start ]]; then
        exit "$status"
    fi
    if [[ $restarts -ge $most ]]; then
        echo "saved, but not put back into the queue after $restarts restarts; submit again to go on"
        exit "$status"
    fi
    echo "saved; back into the queue (restart $((restarts + 1)) of at most $most)"
    # The last task of an array has the array's own id: by that, all of its tasks would be requeued.
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
