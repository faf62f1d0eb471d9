# shellcheck shell=bash
# The part that all SLURM scripts share; they end with `run_job JOB.toml`.

# Before the time limit, or when a job of a higher partition takes the node, the program gets a signal, saves, and
# exits with 75. The job is then requeued and continues from there, at most WSI_IDC_MAX_RESTARTS times (50). A job
# that was cancelled with `scancel` is not requeued.

# A job that is submitted from inside another job inherits the variables of that job, and srun would obey them. The
# loop keeps only the variables that SLURM sets for each job.
for name in "${!SLURM_@}"; do
    case $name in
        SLURM_JOB_GPUS) unset "$name" ;; # SLURM does not set this one for a job without GPUs
        SLURM_CONF | SLURM_JOB_* | SLURM_SUBMIT_*) ;;
        *) unset "$name" ;;
    esac
done

set +u # scripts of the site may use unset variables
if [[ -f slurm/site.env ]]; then
    # shellcheck source=/dev/null
    source <(tr -d '\r' <slurm/site.env) # a file from Windows has \r at its line ends
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

# SLURM's record of this job has the size of the job.
if [[ -n ${SLURM_JOB_ID:-} ]]; then
    for seconds in 1 2 4 8 0; do
        record=$(scontrol --oneliner show job "$SLURM_JOB_ID" | grep "^JobId=$SLURM_JOB_ID ") && break
        sleep "$seconds"
    done
    if [[ -z $record ]]; then
        echo "Error: scontrol does not show job $SLURM_JOB_ID; submit again when SLURM answers" >&2
        exit 1
    fi
    for pair in ArrayJobId=ARRAY_JOB_ID ArrayTaskId=ARRAY_TASK_ID Restarts=RESTART_COUNT NumTasks=NTASKS \
        NtasksPerN:B:S:C=NTASKS_PER_NODE CPUs/Task=CPUS_PER_TASK; do
        if [[ $record =~ \ ${pair%=*}=([0-9]+) ]]; then
            export "SLURM_${pair#*=}=${BASH_REMATCH[1]}"
        fi
    done
    [[ ${SLURM_NTASKS_PER_NODE:-} != 0 ]] || unset SLURM_NTASKS_PER_NODE
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not take this from sbatch
fi

# Run a job file: the script's own, unless the first argument is another one: run_job OWN.toml "$@"
run_job() {
    local job=$1
    shift
    if [[ ${1:-} == *.toml ]]; then
        job=$1
        shift
    fi
    # `wsi-idc status` finds the job in the queue by this comment.
    scontrol update "jobid=$SLURM_JOB_ID" "Comment=wsi-idc job $job" || true
    run_and_requeue wsi-idc job "$job" ${SLURM_ARRAY_TASK_ID:+--task="$SLURM_ARRAY_TASK_ID"} "$@"
}

run_and_requeue() {
    local saved=75 killed_at_start=138 max_restarts=${WSI_IDC_MAX_RESTARTS:-50} restarts=${SLURM_RESTART_COUNT:-0}
    local status=0
    # Only processes of srun get the signal before the limit. With `sbatch --export=...`, srun would start the
    # program without the variables that are set here.
    srun --export=ALL "$@" || status=$?
    # 138 is 128 + SIGUSR1: the signal came before the program had installed its handler.
    if [[ $status -ne $saved && $status -ne $killed_at_start ]]; then
        exit "$status"
    fi
    if [[ $restarts -ge $max_restarts ]]; then
        echo "saved, but not put back into the queue after $restarts restarts; submit again to continue"
        exit "$status"
    fi
    echo "saved; back into the queue (restart $((restarts + 1)) of at most $max_restarts)"
    # The last task of an array has the array's own id: requeuing that id would requeue all tasks.
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
