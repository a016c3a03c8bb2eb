#!/usr/bin/env bash
# One experiment on all workers of a TPU pod: create or reuse, copy, run, follow the logs, collect; again when preempted.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: launch/tpu_pod.sh COMMAND [options] [-- arguments of hgdpo_jax.main]

  go         create, copy, run, logs, and again after a preemption, until the experiment is done; then collect
  create     requests the pod and waits for it; uses the one that is there, replaces one that was preempted
  copy       copies what git does not ignore to all workers and installs it; leaves a worker alone while it runs
  run        starts main on all workers, in the background: it outlives this connection
  logs       follows the logs of all workers until the run ends; exits with its status
  stop       asks the run to save and end, on all workers
  collect    fetches the runs of the workdir (from gs:// without their checkpoints) and the workers' logs into --into
  delete     gives the pod back

  --name=NAME        of the queued resource and of its node (hgdpo)
  --type=TYPE        accelerator type (v5litepod-16)
  --version=VERSION  software of the machines (the one for TYPE)
  --spot             cheaper, and may be preempted
  --zone=ZONE        (gcloud's compute/zone)
  --project=PROJECT  (gcloud's project)
  --workdir=DIR      of main; all workers must see it, so gs://BUCKET/DIR or a mount (needed by go, run, collect)
  --into=DIR         folder on this machine for collect (collected)
  --dry-run          prints the commands for a pod that is not there yet, runs nothing

    launch/tpu_pod.sh go --spot --zone=us-west4-a --workdir=gs://my-bucket/hgdpo -- --config=configs/mine.py

Run the same command again after a stop of any kind; Ctrl-C ends go and logs, and not the run. Needs gcloud, logged in, and an ssh key that ssh-agent knows
(ssh-add ~/.ssh/google_compute_engine). Exit status: main's, or gcloud's; 2 for something to mend.
TEXT
}

complain() { echo "error: $1; --help tells more" >&2 && exit 2; }

name=hgdpo type=v5litepod-16 version='' spot='' workdir='' into=collected dry_run='' command=''
where=() options=()
while (($#)); do
    [[ $1 == --?* ]] && options+=("$1")
    case $1 in
    --help | -h) usage && exit ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --spot) spot=yes ;;
    --zone=* | --project=*) where+=("$1") ;;
    --workdir=*) workdir=${1#*=} ;;
    --into=*) into=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --) shift && break ;;
    -*) complain "$1 is no option of this script, and main's arguments come after --" ;;
    *)
        [[ ! $command ]] || complain "two commands given, $command and $1"
        command=$1
        ;;
    esac
    shift
done
main_arguments=("$@")

if [[ ! $version ]]; then
    case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
    esac
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

run() {
    if [[ $dry_run ]]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}
tpus() { run gcloud compute tpus "$@" "${where[@]}" --quiet; }
on_workers() { tpus tpu-vm ssh "$name" --worker=all --command="$1" "${@:2}"; }

# Sets `state`: that of the queued resource, empty where there is none. In a dry run it is there once it is `requested`.
look() {
    local query=(queued-resources list --filter="name~/$name\$" --format='value(state.state)')
    if [[ $dry_run ]]; then
        tpus "${query[@]}"
        state=${requested:+ACTIVE}
    else
        state=$(tpus "${query[@]}")
    fi
}

create() {
    local state requested=''
    look
    until [[ $state == ACTIVE ]]; do
        case $state in
        '')
            tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
                --runtime-version="$version" ${spot:+--spot}
            requested=yes
            ;;
        # A preempted pod does not come back; its request stays and keeps the name.
        SUSPENDED | FAILED) delete ;;
        *) echo "$name is $state" && sleep 30 ;;
        esac
        look
    done
}

copy() {
    local archive=${TMPDIR:-/tmp}/hgdpo_jax-$$.tar.gz
    if [[ $dry_run ]]; then
        echo "git -C $root ls-files --cached --others --exclude-standard | tar --create --gzip --file=$archive"
    else
        # shellcheck disable=SC2064
        trap "rm -f '$archive'" EXIT
        git -C "$root" ls-files -z --cached --others --exclude-standard |
            # A file that is deleted and still in git's index cannot be copied.
            (cd "$root" && while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done) |
            tar --create --gzip --file="$archive" --directory="$root" --null --files-from=-
    fi
    tpus tpu-vm scp "$archive" "$name:hgdpo_jax.tar.gz" --worker=all
    on_workers 'hgdpo_jax/launch/tpu_worker.sh running 2>/dev/null || { mkdir -p hgdpo_jax && tar --extract --gzip --file=hgdpo_jax.tar.gz --directory=hgdpo_jax && hgdpo_jax/launch/tpu_worker.sh install; }'
}

start() {
    local arguments
    printf -v arguments ' %q' "--workdir=$workdir" "${main_arguments[@]}"
    on_workers "hgdpo_jax/launch/tpu_worker.sh start$arguments"
}

logs() { on_workers 'hgdpo_jax/launch/tpu_worker.sh follow'; }

stop() { on_workers 'hgdpo_jax/launch/tpu_worker.sh stop'; }

collect() {
    run mkdir -p "$into/logs" "$into/runs"
    if [[ $workdir == gs://* ]]; then
        run gcloud storage rsync "$workdir/runs" "$into/runs" --recursive --exclude='.*/checkpoints/.*'
    else
        tpus tpu-vm scp "$name:$workdir/runs" "$into" --recurse
    fi
    on_workers 'cat hgdpo_jax/run/log' --output-directory="$into/logs"
}

delete() { tpus queued-resources delete "$name" --force; }

go() {
    local state status failures=0
    # As commands of their own, so that what fails in one ends it.
    step() { "${BASH_SOURCE[0]}" "$1" "${options[@]}" -- "${main_arguments[@]}"; }
    while true; do
        step create
        status=0
        # Not `step copy && ...`: the status of the first that failed counts.
        for command in copy run logs; do
            step "$command" || { status=$? && break; }
        done
        case $status in
        0) step collect && return ;;
        2) return 2 ;;
        esac
        # What ends a pod is seen there before its state changes.
        sleep 30
        look
        # A pod that is still there: a lost connection, or an error that comes again.
        if [[ $state == ACTIVE ]] && ((++failures == 3)); then
            return "$status"
        fi
        echo "ended with status $status, $name is ${state:-gone}: going on"
    done
}

case $command in
go | run | collect) [[ $workdir ]] || complain "$command needs --workdir=DIR" ;;
esac
case $command in
run) start ;;
go | create | copy | logs | stop | collect | delete) "$command" ;;
'') complain "no command given" ;;
*) complain "there is no command $command" ;;
esac
