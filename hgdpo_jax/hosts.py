"""The processes of one program: one on each host of a pod or a cluster, or a single one.

All run the same command on the same workdir. The first one writes what has no share for each of them.
"""

import collections
import glob
import itertools
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

from hgdpo_jax.errors import UserError, first_line

Item = TypeVar("Item")

# A stage of the first host alone may take hours; a host that dies is noticed by its heartbeat, not by this.
_LONGEST_WAIT = 30 * 24 * 3600
# Seconds that the first process may come later than another one; JAX's own.
_PATIENCE = 300
_waits = itertools.count()
_started = False


def start(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes, where there are any and it has not yet; nothing of JAX may have run before.

    What is not given is read from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without these a SLURM
    job of several tasks and a host with TPUs are joined as JAX finds them. The tasks of a SLURM node share its GPUs.
    Raises UserError where only a part is given, where a SLURM job was started without srun, or where JAX lacks the
    platform that JAX_PLATFORMS names.
    """
    if jax.distributed.is_initialized():
        # A program may run several experiments, one after the other.
        return
    # JAX would take SIGTERM for itself, which termination.py handles.
    jax.config.update("jax_enable_preemption_service", False)
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        "num_processes": num_processes or _environment_number("JAX_NUM_PROCESSES", 0),
        "process_id": process_id if process_id >= 0 else _environment_number("JAX_PROCESS_ID", -1),
    }
    nothing = {"coordinator_address": "", "num_processes": 0, "process_id": -1}
    missing = [name for name, value in given.items() if value == nothing[name]]
    if not missing:
        if not given["process_id"] < given["num_processes"]:
            raise UserError(f"process_id is {given['process_id']}, expected 0 to {given['num_processes'] - 1}")
        _require_coordinator(given["coordinator_address"], given["process_id"])
        # Otherwise JAX would hide all devices but one in a SLURM job.
        jax.distributed.initialize(**given, cluster_detection_method="deactivate")
    elif len(missing) < len(given):
        raise UserError(
            "several processes need all of --coordinator_address=HOST:PORT, --num_processes and --process_id: give also"
            f" {', '.join(f'--{name}' for name in missing)}"
        )
    elif (tasks := _environment_number("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in os.environ:
        # Only srun sets it.
        if "SLURM_STEP_NODELIST" not in os.environ:
            raise UserError(
                f"the SLURM job has {tasks} tasks, but this process was not started by srun: type srun before the "
                "command, or request a single task (--ntasks=1)"
            )
        jax.distributed.initialize(local_device_ids=_slurm_devices(tasks))
    elif _has_tpu():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            # Devices of other kinds that are handed on to virtual machines appear there as well.
            if "coordinator_address should be defined" not in str(error):
                raise
    _require_platform()


def are_announced(coordinator_address: str = "", num_processes: int = 0, process_id: int = -1) -> bool:
    """Whether the arguments of `start`, or the environment, say that there are several processes."""
    environment = any(f"JAX_{name}" in os.environ for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"))
    given = coordinator_address or num_processes or process_id >= 0
    return bool(given or environment or _environment_number("SLURM_NTASKS", 1) > 1)


def _require_coordinator(address: str, process_id: int) -> None:
    """Waits for the coordinator: JAX would end the program with a core dump where it never comes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"coordinator_address is {address!r}, expected HOST:PORT of the first process")
    deadline = time.monotonic() + _PATIENCE
    while process_id:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                # Not the user's to mend where the first host was lost: launchers try again.
                raise TimeoutError(
                    f"process {process_id} cannot reach process 0 at {address} ({error}): start process 0 there, or "
                    "give the address that it has"
                ) from error
            time.sleep(1)


def _slurm_devices(tasks: int) -> list[int] | None:
    """The GPUs of this task, by their numbers among those it sees; [] for all of them, None for what JAX takes: one."""
    nodes = _environment_number("SLURM_STEP_NUM_NODES", 1)
    if "JAX_LOCAL_DEVICE_IDS" in os.environ or tasks % nodes:
        return None
    tasks_on_node, on_node = tasks // nodes, _environment_number("SLURM_GPUS_ON_NODE", 0)
    seen = sum(1 for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name)
    # SLURM may show each task its own only (--gpus-per-task).
    if tasks_on_node == 1 or 0 < seen < on_node:
        return []
    share = on_node // tasks_on_node
    first = share * _environment_number("SLURM_LOCALID", 0)
    return list(range(first, first + share)) or None


def _require_platform() -> None:
    """Starts JAX's devices; raises UserError where JAX_PLATFORMS names a platform that is not installed."""
    global _started
    try:
        jax.devices()
        _started = True
    # JAX asserts that CUDA's plugin and driver are there.
    except (AssertionError, RuntimeError) as error:
        reason = first_line(error) if error.args else "its plugin or driver is missing"
        if isinstance(error, RuntimeError) and "known backends" not in reason and "open libtpu" not in reason:
            raise
        raise UserError(
            f"JAX cannot use JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} ({reason}): install JAX for it, such as "
            "pip install 'jax[cuda12]' or 'jax[tpu]', or unset JAX_PLATFORMS"
        ) from error


def device_counts() -> tuple[int, int] | None:
    """How many devices there are, and how many this process has; None before `start`, except on CPUs.

    It starts no devices: a plan leaves them to the run that is under way.
    """
    if _started:
        return jax.device_count(), jax.local_device_count()
    if _has_tpu() or glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg"):
        return None
    forced = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    # JAX defines its settings when it is imported, which the type checker cannot know; -1 is one device.
    configured = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    count = int(forced[1]) if forced else max(1, configured)
    return count, count


def _has_tpu() -> bool:
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))


def devices() -> str:
    """What this process computes on, and on the first of several what all of them have, in words."""
    own = jax.local_devices()
    words = f"{len(own)} x {own[0].device_kind}"
    if count() == 1:
        return words
    words = f"process {index()} of {count()}: {words}"
    return f"{words}, {jax.device_count()} in all" if is_first() else words


def count() -> int:
    """How many processes there are."""
    return jax.process_count()


def index() -> int:
    """Which of them this is, counted from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    return jax.process_index() == 0


def own(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of a list that is the same on all: every n-th item."""
    return items[jax.process_index() :: jax.process_count()]


def own_rows(count: int) -> range:
    """This process's share of the numbers below `count`, a multiple of the number of processes, as one piece."""
    share = count // jax.process_count()
    return range(share * jax.process_index(), share * (jax.process_index() + 1))


def wait() -> None:
    """Returns when all processes are here; a process that has ended ends the others."""
    if count() > 1:
        # Not at the top: --help and --plan do without.
        from orbax.checkpoint import multihost

        # By the coordinator, not by the devices: their collectives give up after minutes.
        barrier = multihost.get_barrier_sync_fn()
        barrier(key=f"hgdpo_jax-{next(_waits)}", timeout_ms=1000 * _LONGEST_WAIT)


def from_first(value: Any) -> Any:
    """The first process's value on all, a plain one that JSON can hold."""
    return gather(value if is_first() else None)[0]


def chosen_by_first(items: Sequence[Item], choose: Callable[[], Iterable[Item]]) -> list[Item]:
    """The items that the first process chooses after all processes have arrived; the same list on all."""
    wait()
    numbers = {item: number for number, item in enumerate(items)}
    return [items[number] for number in from_first([numbers[item] for item in choose()] if is_first() else [])]


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order; plain ones that JSON can hold.

    Raises UserError, on all of them, where they have unequal numbers of devices.
    """
    if count() == 1:
        return [value]
    devices = collections.Counter(device.process_index for device in jax.devices())
    if len(set(devices.values())) > 1:
        numbers = ", ".join(str(devices[number]) for number in range(count()))
        raise UserError(
            f"the processes have {numbers} devices, expected as many on each: give all of them machines of one kind, "
            "the same CUDA_VISIBLE_DEVICES and the same config.cpu_devices"
        )
    wait()
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(encoded)))
    padded = np.pad(encoded, (0, lengths.max() - len(encoded)))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def together(function: Callable[[], Item]) -> Item:
    """Calls `function` on every process; a UserError of any of them is raised on all, so that none waits for it."""
    if count() == 1:
        return function()
    result, refusal = _attempt(function)
    refusals = gather(refusal)
    for number, words in enumerate(refusals):
        if words:
            # What all of them say concerns none of them in particular.
            raise UserError(words if len(set(refusals)) == 1 else f"process {number}: {words}")
    return cast(Item, result)


def by_first(function: Callable[[], Item]) -> Item | None:
    """Calls `function` on the first process and returns its value there; its UserError is raised on all."""
    if count() == 1:
        return function()
    result, refusal = _attempt(function) if is_first() else (None, "")
    if words := from_first(refusal):
        raise UserError(words)
    return result


def _attempt(function: Callable[[], Item]) -> tuple[Item | None, str]:
    """The value of a call, or what it refuses."""
    try:
        return function(), ""
    except UserError as error:
        return None, str(error)


def divide(
    function: Callable[[np.ndarray], dict[str, Shaped[np.ndarray, "own ..."]]], rows: int
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Calls `function` with this process's share of the row numbers, and joins what all of them return, row by row.

    Shares are equally long: the last ones may hold row 0 again.
    """
    if count() == 1:
        return function(np.arange(rows))
    numbers = np.asarray(own_rows(-(-rows // count()) * count()))
    values = function(np.where(numbers < rows, numbers, 0))
    wait()
    return {name: multihost_utils.process_allgather(value, tiled=True)[:rows] for name, value in values.items()}


class Agreement:
    """Whether a flag is set on one of the processes, the same answer on all; each asks as often as the others.

    Nobody waits: with several processes the answer is that to the question before.
    """

    def __init__(self) -> None:
        self._answers: list[jax.Array] = []

    def __call__(self, flag: bool) -> bool:
        if count() == 1:
            return flag
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
        divided = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        flags = jax.make_array_from_callback((mesh.size,), divided, lambda index: np.full(1, flag, np.int32))
        self._answers.append(_largest(flags))
        return len(self._answers) > 1 and bool(self._answers.pop(0))


@jax.jit
def _largest(values):
    return values.max()


def _environment_number(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    if not value:
        return default
    try:
        return int(value)
    except ValueError as error:
        raise UserError(f"the environment variable {name} is {value!r}, expected a number") from error
