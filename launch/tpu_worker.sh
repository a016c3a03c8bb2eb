#!/usr/bin/env bash
# What tpu_pod.sh does on each worker of a TPU pod. A run outlives the connection that started it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/tpu_worker.sh COMMAND      (on the worker; tpu_pod.sh calls it)

  install             makes .venv with Python 3.11, this package and JAX for TPUs
  running             succeeds if a run is under way
  start ARGUMENTS     starts hgdpo_jax.main in the background unless a run is under way
  follow              prints the run's log as it grows; ends with the run and its exit status
  stop                asks the run to save and end (SIGTERM), and waits for it
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Log, process id and exit status of the run. It holds the lock as long as it lives, whatever kills it.
folder=run

running() { ! flock --shared --nonblock "$folder/lock" true; }

install() {
    export PATH="$HOME/.local/bin:$PATH"
    # The machines' own Python is often 3.10, and this package needs 3.11.
    command -v uv >/dev/null || curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | sh
    uv venv --quiet --allow-existing --python 3.11 .venv
    uv pip install --quiet --python .venv --editable '.[gcs,torch]' 'jax[tpu]'
}

start() {
    if running; then
        echo "a run is under way; its settings stay"
        return
    fi
    rm -f "$folder/pid" "$folder/status"
    # A shell around main notes its status; the signal that ends main must not end the shell.
    # shellcheck disable=SC2016
    setsid bash -c '
        exec 9>"$0/lock" && flock 9 && echo $$ >"$0/pid"
        trap : TERM
        status=0 && "$@" || status=$?
        echo "$status" >"$0/status"
    ' "$folder" .venv/bin/python -m hgdpo_jax.main "$@" >>"$folder/log" 2>&1 </dev/null &
    until [[ -s $folder/pid ]]; do sleep 0.1; done
}

follow() {
    tail -n 20 -F "$folder/log" 2>/dev/null | sed --unbuffered "s/^/[$(hostname)] /" &
    flock --shared "$folder/lock" true
    # Its last lines.
    sleep 2
    kill %1
    [[ -s $folder/status ]] || { echo "error: $(hostname): the run ended with this machine, or never began" >&2 && exit 1; }
    return "$(cat "$folder/status")"
}

stop() {
    running || return 0
    kill -TERM -- "-$(cat "$folder/pid")"
    flock --shared "$folder/lock" true
}

case ${1:-} in
install | running | start | follow | stop)
    mkdir -p "$folder"
    touch "$folder/lock"
    "$@"
    ;;
--help | -h) usage ;;
*) echo "error: ${1:-nothing} given, expected a command; --help lists them" >&2 && exit 2 ;;
esac
