#!/usr/bin/env bash
# A throw-away SLURM of two nodes on this machine, under $SLURM_LAB: munged, slurmctld, slurmd as n1 and n2, each
# with 2 GPUs that are none, partitions `main` and `high`, which preempts `main` by requeueing. Needs root and
# Debian's slurmctld, slurmd, slurm-client and munge; reads and writes nothing of a SLURM that is there.
#
#   eval "$(tests/slurm/lab.sh up)"       sets SLURM_CONF
#   tests/slurm/lab.sh down
set -euo pipefail
lab=${SLURM_LAB:?the folder of the cluster} nodes=2 port=${SLURM_LAB_PORT:-26817}
# task/affinity binds processes to cores: SLURM_LAB_CPUS must not be more than the cores of this machine.
task_plugin=${SLURM_LAB_TASK_PLUGIN:-task/none} cpus=${SLURM_LAB_CPUS:-4}
export SLURM_CONF=$lab/slurm.conf

port_is_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# On a closed port sinfo itself tries for 9 s.
is_ready() { port_is_open "$port" && [[ $(timeout 10 sinfo -h -N -p main -t idle,alloc,mix -o %N | sort -u | wc -l) == "$nodes" ]]; }
is_alive() { [[ -n $(tr -d '\0' <"/proc/$1/cmdline") ]]; } 2>/dev/null # false for a zombie too

stop() { # PIDFILE NAME; the name is looked at, since the pid may be another's by now
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2"* ]]; then
        kill "$pid"
        for _ in $(seq 50); do
            is_alive "$pid" || break
            sleep 0.1
        done
        ! is_alive "$pid" || kill -9 "$pid"
    fi
    rm -f "$1"
}

down() {
    [[ -d $lab/run ]] || return 0
    if port_is_open "$port"; then
        timeout 10 scancel --user="$(id -un)" || true
        for _ in $(seq 40); do
            [[ -n $(timeout 5 squeue -h) ]] || break
            sleep 0.25
        done
    fi
    local file
    for file in "$lab"/run/slurmd-*.pid; do stop "$file" slurmd; done
    stop "$lab/run/slurmctld.pid" slurmctld
    stop "$lab/run/munged.pid" munged
    rm -rf "$lab"/{state,run} "$lab"/spool-*
}

configure() {
    local me devices i
    me=$(id -un)
    cat >"$SLURM_CONF" <<CONF
ClusterName=lab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$lab/run/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool-%n
SlurmctldPidFile=$lab/run/slurmctld.pid
SlurmdPidFile=$lab/run/slurmd-%n.pid
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=$task_plugin
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=10
MinJobAge=86400
CONF
    for i in $(seq "$nodes"); do
        echo "NodeName=n$i NodeHostname=n$i NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=8000 Gres=gpu:2"
    done >>"$SLURM_CONF"
    cat >>"$SLURM_CONF" <<CONF
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 DefaultTime=10 MaxTime=UNLIMITED State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF DefaultTime=10 MaxTime=UNLIMITED State=UP
CONF
    # A GPU needs a character device, or its node is invalid; it is never opened.
    devices=$(find /dev -maxdepth 1 -type c | sort | head -n 2 | paste -sd,)
    echo "Name=gpu File=$devices" >"$lab/gres.conf"
}

up() {
    down
    mkdir -p "$lab"/{state,log,run}
    chmod 755 "$lab" "$lab/run"
    for i in $(seq "$nodes"); do
        grep -qE "^127\.0\.0\.1\s+n$i\$" /etc/hosts || echo "127.0.0.1 n$i" >>/etc/hosts
    done
    configure
    ulimit -c 0
    (umask 077 && head -c 128 /dev/urandom >"$lab/munge.key")
    munged --key-file="$lab/munge.key" --socket="$lab/run/munge.sock" --pid-file="$lab/run/munged.pid" \
        --log-file="$lab/log/munged.log" --seed-file="$lab/run/munge.seed"
    slurmctld -c
    for i in $(seq "$nodes"); do # each with a host name of its own
        unshare --uts sh -c "hostname n$i; exec slurmd -N n$i"
    done
    for _ in $(seq 200); do
        if is_ready; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    echo "the cluster did not come up; see $lab/log" >&2
    exit 1
}

"$1"
