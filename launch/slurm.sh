#!/usr/bin/env bash
# One experiment on nodes of 8 A100s under SLURM: one process a node, again after a preemption and at the time limit.
#SBATCH --job-name=hgdpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
# Two minutes before the time limit the processes, not this shell, get SIGTERM: they save and end with 143.
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/slurm.sh [--dry-run] [options of sbatch] [-- arguments of hgdpo_jax.main]

Submits the experiment: by default 2 nodes of 8 GPUs, 24 hours, as often again as it takes. Inside an allocation (salloc)
it runs at once. The log is slurm-JOB.log in the current folder, which must be one that all nodes see, as must --workdir
and the Python environment. A job that was cancelled, or that failed for other reasons, is not queued again.

  --dry-run   prints the commands, runs nothing
  PYTHON      (environment) the interpreter; otherwise .venv's of the current folder, otherwise python3

    launch/slurm.sh --partition=gpu --gpus-per-node=a100:8 -- --config=configs/mine.py --workdir=/shared/hgdpo
TEXT
}

dry_run=
options=()
while (($#)); do
    case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=yes ;;
    --) shift && break ;;
    -*=*) options+=("$1") ;;
    *) echo "error: $1 given, expected --option=value of sbatch, and main's arguments after --; --help tells more" >&2 && exit 2 ;;
    esac
    shift
done

run() {
    if [[ $dry_run ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}

python=${PYTHON:-$PWD/.venv/bin/python}
[[ ${PYTHON:-} || -x $python ]] || python=python3
# A process left to itself would bind to one core. When one is lost, JAX ends the others; --kill-on-bad-exit would end them
# with 143, and a fault would pass for a preemption.
step=(srun --label --cpu-bind=none "$python" -m hgdpo_jax.main "$@")

if [[ ! ${SLURM_JOB_ID:-} ]]; then
    run sbatch "${options[@]}" "${BASH_SOURCE[0]}" -- "$@"
    if [[ $dry_run ]]; then
        run "${step[@]}"
    fi
    exit
fi

# A job that is cancelled ends with SIGTERM to this shell as well, which then waits for the processes.
cancelled=
trap 'cancelled=yes' TERM
status=0
run "${step[@]}" || status=$?
if ((status == 143)) && [[ ! $cancelled ]]; then
    run scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
