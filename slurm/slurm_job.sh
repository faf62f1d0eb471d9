# shellcheck shell=bash
# Common part of all SLURM scripts. Each script ends with `run_job JOB.toml`.

# Before the time limit, or if a job with a higher priority needs the node, SLURM sends the program a signal. The
# program saves its work and exits with 75. Then the job is requeued and continues, at most WSI_IDC_MAX_RESTARTS
# times (50). A job that was cancelled with `scancel` is not requeued.

# A job that is submitted from inside another job inherits the variables of that job, and srun would use them.
# Therefore this loop keeps only the variables that SLURM sets for each job.
for name in "${!SLURM_@}"; do
    case $name in
        SLURM_JOB_GPUS) unset "$name" ;; # SLURM sets this variable only for a job with GPUs
        SLURM_CONF | SLURM_JOB_* | SLURM_SUBMIT_*) ;;
        *) unset "$name" ;;
    esac
done

set +u # scripts of the site may use unset variables
if [[ -f slurm/site.env ]]; then
    # shellcheck source=/dev/null
    source <(tr -d '\r' <slurm/site.env) # the lines of a file from Windows end with \r
fi
if [[ -f .venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source .venv/bin/activate
fi
set -u
# WSI_IDC_COMMAND in slurm/site.env can run the program in a container.
read -ra program <<<"${WSI_IDC_COMMAND:-wsi-idc}"
if ! command -v "${program[0]}" >/dev/null; then
    echo "Error: ${program[0]} is not on $(hostname), in .venv/ of $PWD or on PATH; submit from the project's folder," \
        "or load ${program[0]} in slurm/site.env" >&2
    exit 1
fi
export PYTHONUNBUFFERED=1

# Set variables for the size of this job, from SLURM's record of the job.
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
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun does not use the value of sbatch
fi

# Run a job file: run_job DEFAULT.toml "$@". If the first argument in "$@" is a job file, it replaces DEFAULT.toml.
run_job() {
    local job=$1
    shift
    if [[ ${1:-} == *.toml ]]; then
        job=$1
        shift
    fi
    # `wsi-idc status` finds the job in the queue by this comment.
    scontrol update "jobid=$SLURM_JOB_ID" "Comment=wsi-idc job $job" || true
    run_and_requeue "${program[@]}" job "$job" ${SLURM_ARRAY_TASK_ID:+--task="$SLURM_ARRAY_TASK_ID"} "$@"
}

run_and_requeue() {
    local saved=75 killed_at_start=138 max_restarts=${WSI_IDC_MAX_RESTARTS:-50} restarts=${SLURM_RESTART_COUNT:-0}
    local status=0
    # Only processes of srun get the signal before the time limit. Without --export=ALL, `sbatch --export=...` would
    # hide the variables of this script from the program.
    srun --export=ALL "$@" || status=$?
    # 138 is 128 + SIGUSR1: the signal came before the program had installed its handler.
    if [[ $status -ne $saved && $status -ne $killed_at_start ]]; then
        exit "$status"
    fi
    if [[ $restarts -ge $max_restarts ]]; then
        echo "saved, but not requeued after $restarts restarts; submit again to continue"
        exit "$status"
    fi
    echo "saved; requeued (restart $((restarts + 1)) of at most $max_restarts)"
    # The last task of an array has the same id as the array: requeuing this id would requeue all tasks.
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    else
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$status"
}
