#!/usr/bin/env bash
# N processes of one experiment on this machine's CPU, as they would be on N hosts.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/local_processes.sh [--dry-run] N [arguments of hgdpo_jax.main]

Starts N processes that work together on one experiment, on the CPU. Each line of output begins with the number of its
process. If one fails or the script is stopped, the others are stopped too; the same command goes on where they were.
Exit status: that of the first process that failed, 130 interrupted, 143 terminated.

  --dry-run   print the commands, run nothing
  PYTHON      (environment) the interpreter; otherwise .venv's of this repository, otherwise python3

    launch/local_processes.sh 2 --config=configs/toon_smoke.py --workdir=workdir
TEXT
}

# `wait -n -p` came with it.
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 501)); then
    echo "error: this is bash $BASH_VERSION, expected 5.1 or later; on macOS: brew install bash" >&2
    exit 2
fi

dry_run=
while [[ ${1:-} == -* ]]; do
    case $1 in
    --help | -h) usage && exit ;;
    --dry-run) dry_run=yes ;;
    *) echo "error: $1 is no option of this script, and N comes before main's; --help tells more" >&2 && exit 2 ;;
    esac
    shift
done
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: ${1:-nothing} given, expected a number of processes; --help tells more" >&2
    exit 2
fi
count=$1
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[[ ${PYTHON:-} || -x $python ]] || python=python3

# As main divides a machine of its own: a power of two, at most 8, and no more devices than cores.
cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
devices=8
while ((devices > 1 && devices * count > cores)); do ((devices /= 2)); done

port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

# Sets `command` to what process $1 runs; arguments given by the caller come later and win.
make_command() {
    command=(env JAX_PLATFORMS=cpu "$python" -m hgdpo_jax.main
        "--coordinator_address=127.0.0.1:$port" "--num_processes=$count" "--process_id=$1"
        "--config.cpu_devices=$devices" "${@:2}")
}

if [[ $dry_run ]]; then
    for ((number = 0; number < count; number++)); do
        make_command "$number" "$@"
        printf '%q ' "${command[@]}" && echo
    done
    exit
fi

# What still runs: process id -> number.
declare -A running=()
# TERM lets them save; one that waits for a lost process inside a collective hears nothing, so KILL follows.
stop() {
    trap '' INT TERM
    ((${#running[@]})) || return 0
    kill -TERM "${!running[@]}" 2>/dev/null || true
    (sleep 30 && kill -KILL "${!running[@]}") >/dev/null 2>&1 &
    local killer=$!
    wait "${!running[@]}" || true
    kill "$killer" 2>/dev/null || true
}
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM

for ((number = 0; number < count; number++)); do
    make_command "$number" "$@"
    "${command[@]}" > >(exec sed -u "s/^/[$number] /") 2>&1 &
    running[$!]=$number
done

while ((${#running[@]})); do
    status=0
    wait -n -p finished "${!running[@]}" || status=$?
    unset "running[$finished]"
    if ((status)); then
        stop
        exit "$status"
    fi
done
