"""Runs the stages of an experiment that are not done.

    python -m hgdpo_jax.main --config=configs/toon.py
    python -m hgdpo_jax.main --config=configs/toon.py --plan
    python -m hgdpo_jax.main --config=configs/toon.py --config.name=milder --config.loss.beta=10000
    python -m hgdpo_jax.main --config=configs/toon.py --stage=sample_images,evaluate_policy

Run the same command again after a stop of any kind: it goes on where it was. Files lie in WORKDIR/runs/NAME/STAGE.
A config's fields, with their meaning, are in hgdpo_jax/base_config.py; --config.FIELD=VALUE changes one.
HGDPO_DEBUG=1 shows the traceback of an error. Exit status: 0 done, 1 unexpected error, 2 something to mend in the
command, its files or the disk, 130 interrupted, 143 terminated.
"""

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import importlib
import importlib.metadata
import os
import pkgutil
import re
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from logging import CRITICAL, getLogger
from types import ModuleType
from typing import Any, NoReturn

from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from hgdpo_jax.artifacts import TRACEBACK, StageRun, differences, refuse_changes
from hgdpo_jax.compilation import spare_memory_of_cpu, usable_cores
from hgdpo_jax.config_files import config_changes, read_config
from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import require_store, require_utf8_name, write_text
from hgdpo_jax.termination import Terminated, leave, raised_on_sigterm
from hgdpo_jax.texts import require_whole_characters, show_all_characters

# What stops a run from outside, and may be mended while it waits.
_DISK_TROUBLES = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left on the disk",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "no permission",
    errno.ENOTDIR: "a file is where a folder is expected",
    errno.EISDIR: "a folder is where a file is expected",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files, as ulimit -n counts them",
}
# Hosts with other versions of these may compute other numbers.
_DECISIVE_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "transformers")
# And those that were told otherwise by the environment.
_DECISIVE_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
_REPORT = epath.Path("report/index.html")


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's module and its run in this experiment."""

    module: ModuleType
    run: StageRun


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name); returns the exit status."""
    debug = os.environ.get("HGDPO_DEBUG", "") not in ("", "0")
    try:
        with raised_on_sigterm():
            _run(arguments)
        return 0
    except KeyboardInterrupt:
        return _complain("interrupted; what is made is kept: run the same command to go on", 130)
    except Terminated:
        return _complain("terminated; what is made is kept: run the same command to go on", 143)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, UserError):
            return _complain(str(error), 2)
        if trouble := _disk_trouble(error):
            return _complain(f"{trouble}; what is made is kept: mend it, run the same command again", 2)
        return _complain(f"unexpected {type(error).__name__}: {error}; HGDPO_DEBUG=1 shows where", 1)


def _run(arguments: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "workdir", "Folder of all that is made; a gs:// path works too.", flag_values=values)
    flags.DEFINE_list("stage", [], "Stages to run instead of the config's, comma-separated.", flag_values=values)
    flags.DEFINE_bool(
        "plan", False, "Print the stages, which are done and what each costs; run nothing.", flag_values=values
    )
    several = "Where several processes share the work; else from the environment, see the README."
    flags.DEFINE_string("coordinator_address", "", f"HOST:PORT of the first process. {several}", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "How many processes there are.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "Which of them this is, counted from 0.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)
    # Declared for the help text; read by read_config.
    changes = config_changes(arguments)
    flags.DEFINE_string("config", None, "The experiment: a Python file with get_config().", flag_values=values)
    try:
        rest = values(["hgdpo_jax.main", *(argument for argument in arguments if argument not in changes)])[1:]
    except flags.Error as error:
        raise UserError(f"{first_line(error)}; --help lists the flags") from error
    if values.help:
        print(
            f"{(__doc__ or '').strip()}\n\nFlags:\n{_flag_lines(values)}\nStages: {', '.join(sorted(_stage_modules()))}"
        )
        return
    if rest:
        raise UserError(f"{' '.join(rest)} is not a flag; --help lists the flags")
    if not values.config:
        raise UserError("no experiment given, expected --config=FILE, for example --config=configs/toon.py")

    config = read_config(values.config, changes)
    for path in (values.workdir, *filter(os.path.exists, config.weights.values())):
        require_utf8_name(path)
    require_whole_characters(values.workdir, "--workdir")
    workdir = epath.Path(values.workdir).expanduser()
    require_store(workdir)
    if workdir.is_file():
        raise UserError(f"workdir {workdir} is a file, expected a folder: give another with --workdir=DIR")
    stages = values.stage or config.stages
    for name in stages:
        _require_stage(name)
    if values.plan:
        _print_plan(_stages(config, stages, workdir), config)
    else:
        names = ("coordinator_address", "num_processes", "process_id")
        _run_stages(config, stages, workdir, {name: values[name].value for name in names})


def _stages(config: ConfigDict, names: Sequence[str], workdir: epath.Path) -> list[Stage]:
    """The named stages, loaded, with their inputs."""
    known: dict[str, Stage] = {}

    def load(name: str) -> Stage:
        if name not in known:
            module = importlib.import_module(_stage_modules()[name])
            inputs = {earlier: load(earlier).run for earlier in module.INPUTS}
            run = StageRun(name, config.name, workdir, module.settings(config), inputs)
            known[name] = Stage(module, run)
        return known[name]

    return [load(name) for name in names]


def _require_stage(name: str) -> None:
    names = sorted(_stage_modules())
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"the stages are {', '.join(names)}"
        raise UserError(f"there is no stage {name!r}: {hint}")


def _stage_modules() -> dict[str, str]:
    """The module of each stage."""
    packages = [importlib.import_module(f"hgdpo_jax.{place}") for place in ("stages", "toon.stages")]
    return {
        module.name: f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
    }


def _print_plan(stages: Sequence[Stage], config: ConfigDict) -> None:
    width = max(len(stage.run.name) for stage in stages)
    for stage in stages:
        if stage.run.changes():
            state = "other settings"
        elif stage.run.is_done():
            state = "done"
        else:
            state = "partly done" if stage.run.is_started() else "to do"
        print(f"{stage.run.name:{width}}  {state:14}  {stage.module.plan(config, stage.run)}")


def _run_stages(config: ConfigDict, names: Sequence[str], workdir: epath.Path, processes: dict) -> None:
    """Runs what is not done, after everything that can be wrong beforehand has been looked at."""
    # Not at the top: --help and --plan do without JAX.
    from hgdpo_jax import hosts, leases

    def refuse_neighbour() -> None:
        undone = (run for name in names if not (run := StageRun(name, config.name, workdir, {})).is_done())
        if first_undone := next(undone, None):
            leases.refuse_neighbour(first_undone.folder)

    several = hosts.are_announced(**processes)
    if not several:
        # Before this machine's devices are asked for, which a run that is under way here needs.
        refuse_neighbour()
    spare_memory_of_cpu()
    _divide_cpu(config.cpu_devices)
    _keep_programs()
    # Before weights are fetched and hashed: hosts take unequal time for that, and JAX waits five minutes for late ones.
    hosts.start(**processes)
    if several:
        # Not earlier: the other processes would wait for one that has ended.
        hosts.together(refuse_neighbour)
    stages = hosts.together(lambda: _stages(config, names, workdir))
    _require_alike(config, stages)
    hosts.together(lambda: refuse_changes([stage.run for stage in stages]))
    # Whoever comes later would see what the first one has finished meanwhile.
    names = hosts.from_first([stage.run.name for stage in stages if not stage.run.is_done()])
    ahead = [stage for stage in stages if stage.run.name in names]
    hosts.together(lambda: _check(ahead, config))
    print(f"devices: {hosts.devices()}", flush=True)
    if ahead:
        _require_workdir(workdir)

    width = max(len(stage.run.name) for stage in stages)

    def say(stage: Stage, words: str) -> None:
        if hosts.is_first():
            print(f"{stage.run.name:{width}}  {words}", flush=True)

    for stage in stages:
        if stage not in ahead:
            say(stage, "done before, skipped")
            continue
        _run_stage(stage, config, say)
    for stage in stages:
        if hosts.is_first() and (stage.run.folder / _REPORT).is_file():
            print(f"report: {stage.run.folder / _REPORT}")


def _require_alike(config: ConfigDict, stages: Sequence[Stage]) -> None:
    """Raises UserError on every host where one has another config, other weights or other packages than the first."""
    import jax

    from hgdpo_jax import hosts

    if hosts.count() == 1:
        return
    settings: dict[str, Mapping[str, Any]] = {}

    def collect(run: StageRun) -> None:
        settings[run.name] = run.settings
        for earlier in run.inputs.values():
            collect(earlier)

    for stage in stages:
        collect(stage.run)
    own = {
        "stages": [stage.run.name for stage in stages],
        "config": config.to_dict(),
        "packages": _packages(),
        "jax": {name: getattr(jax.config, name) for name in _DECISIVE_OPTIONS},
    }
    # What stages make of a config counts files by their content: weights, prompts and functions of the user's own.
    first, *others = hosts.gather([own, settings])
    for number, other in enumerate(others, 1):
        if found := differences(first[0], other[0]) or differences(first[1], other[1]):
            raise UserError(
                f"process {number} differs from process 0: {', '.join(found)}; start all of them with the same "
                "command, code, packages and weights"
            )


def _packages() -> dict[str, str]:
    """Versions of all that decides a result, this package's by its source."""
    source = hashlib.sha256()
    folder = epath.Path(__file__).parent
    for path in sorted(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}*.py")):
        source.update(f"{path.relative_to(folder)} ".encode() + path.read_bytes())
    return {name: importlib.metadata.version(name) for name in _DECISIVE_PACKAGES} | {
        "hgdpo_jax": source.hexdigest()[:16]
    }


def _check(ahead: Sequence[Stage], config: ConfigDict) -> None:
    """Raises UserError where a stage reads one that is neither done nor ahead of it, or cannot do its work."""
    coming: set[str] = set()
    for stage in ahead:
        earlier = [run for name, run in stage.run.inputs.items() if name not in coming]
        refuse_changes(earlier)
        for run in earlier:
            if not run.is_done():
                raise UserError(
                    f"{stage.run.name} reads {run.name}, which is not done in {run.folder.parent}: "
                    f"put {run.name} before it in --stage, or leave --stage out"
                )
        coming.add(stage.run.name)
        if hasattr(stage.module, "check"):
            stage.module.check(config)


def _divide_cpu(devices: int) -> None:
    """Makes several devices of a CPU, which runs one small program on hardly more than a core."""
    # Not at the top: --help and --plan do without.
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = min(usable_cores(), 8)
        # A program that used JAX before it called main keeps the devices it has.
        with contextlib.suppress(RuntimeError):
            # A power of two divides the usual batches.
            jax.config.update("jax_num_cpu_devices", devices or 1 << (cores.bit_length() - 1))


def _run_stage(stage: Stage, config: ConfigDict, say: Callable[[Stage, str], None]) -> None:
    """Runs a stage that is not done, unless another run is at it (UserError) or has completed it by now."""
    from hgdpo_jax import hosts, leases

    with leases.held(stage.run.folder):

        def start() -> bool:
            # Another run may have begun or completed it since this one looked.
            refuse_changes([*stage.run.inputs.values(), stage.run])
            if stage.run.is_done():
                return False
            stage.run.start()
            return True

        if not hosts.from_first(hosts.by_first(start)):
            return say(stage, "done by another run, skipped")
        say(stage, f"running: {stage.module.plan(config, stage.run)}")
        begin = time.monotonic()
        try:
            if hosts.is_first() or getattr(stage.module, "EVERY_HOST", False):
                stage.module.run(config, stage.run)
        except UserError:
            raise
        except Exception as error:
            if _disk_trouble(error):
                raise
            place = stage.run.folder / TRACEBACK
            write_text(place, traceback.format_exc())
            raise RuntimeError(
                f"{stage.run.name}: {type(error).__name__}: {first_line(error)} (traceback in {place})"
            ) from error
        hosts.wait()
        if hosts.is_first():
            stage.run.finish()
        say(stage, f"done in {time.monotonic() - begin:.1f} s")


def _require_workdir(workdir: epath.Path) -> None:
    """Raises UserError on every host where one cannot write into the workdir, or sees another one than the first."""
    from hgdpo_jax import hosts

    # Not by process number: in containers each host has the same one.
    probe = workdir / f".writable-{uuid.uuid4().hex}"

    def write() -> None:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
        # An object store has errors of its own.
        except Exception as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(
                f"workdir {workdir} cannot be written ({reason}): give another with --workdir=DIR"
            ) from error

    def look() -> None:
        if not (workdir / first).is_file():
            raise UserError(
                f"workdir {workdir} is not that of process 0: give all of them one that they share, on NFS or gs://"
            )

    try:
        hosts.together(write)
        first = hosts.from_first(probe.name)
        hosts.together(look)
    finally:
        with contextlib.suppress(Exception):
            probe.unlink(missing_ok=True)


def _keep_programs() -> None:
    """Makes sure that programs are compiled once, not once a run."""
    # Not at the top: --help and --plan do without.
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(epath.Path("~/.cache/hgdpo_jax/xla").expanduser()))
    # Small programs too: a start has hundreds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _disk_trouble(error: BaseException) -> str:
    """What of disk or memory stopped the run, and where, read off an error or its causes; empty where neither did.

    The checkpoint and record writers are C++ and pass on only the system's words.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number, words in _DISK_TROUBLES.items():
            if isinstance(cause, OSError) and cause.errno == number:
                return f"{words} ({cause.filename or cause.strerror})"
            if os.strerror(number) in str(cause):
                return f"{words} (no file can be written)"
        # GPUs are out of memory, TPUs ran out of it.
        if isinstance(cause, MemoryError) or re.search("RESOURCE_EXHAUSTED.*ut of memory", str(cause)):
            return f"out of memory ({first_line(cause)}): lower pool., scoring., train. or finetune.device_batch"
        cause = cause.__cause__ or cause.__context__
    return ""


def _complain(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def _flag_lines(values: flags.FlagValues) -> str:
    lines = []
    for name in ("config", "workdir", "stage", "plan", "coordinator_address", "num_processes", "process_id", "help"):
        default = values[name].default
        shown = f" (default: {default})" if default else ""
        lines.append(f"  --{name:19}  {values[name].help}{shown}")
    return "\n".join(lines)


def command() -> NoReturn:
    """The program `hgdpo`."""
    # What goes wrong in a library reaches main as an exception, and is told in one line there.
    logging.set_verbosity(logging.FATAL)
    # A checkpoint's writers leave what failed to asyncio's log as well.
    getLogger("asyncio").setLevel(CRITICAL)
    show_all_characters()
    # As `python -m` does: configs and functions of the user's own are imported from where the program starts.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
