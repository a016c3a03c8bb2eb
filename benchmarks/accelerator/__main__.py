"""Checks and times everything on one accelerator: does it run, does it compute the right thing, how fast is it.

    python -m benchmarks.accelerator                   # all rows that are missing, most important first
    python -m benchmarks.accelerator --budget=240      # start nothing new after 240 seconds
    python -m benchmarks.accelerator --plan            # the rows with their estimated seconds
    python -m benchmarks.accelerator --rehearse        # every row with tiny models on any machine

Results go to benchmarks/accelerator/DEVICE.json row by row, and a second run goes on with what is missing or failed.
It needs jax with its accelerator's plugin, flax, optax, einops, jaxtyping, etils and numpy, and downloads nothing. With
PyTorch and transformers, diffusers 0.42.1 and peft 0.21.2 (pure Python: `pip download --no-deps diffusers==0.42.1
peft==0.21.2` makes wheels to carry along) the peer's rows are there too. Exit status: 0 done, 1 a check or row failed.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator.rows import Results, Row

FOLDER = Path(__file__).parent
FIGURES = FOLDER / "cpu_figures.json"
# In the order in which they run.
PROCESSES = ("checks", "timings", "peer")
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "diffusers", "peft")


def main(arguments: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    options = _parse(arguments)
    if options.record:
        return _record(options)
    if options.first_image:
        return _first_image(options)
    if options.process:
        return _run_process(options)
    if options.plan:
        return _print_plan(options)
    return _run_all(options)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=480.0, help="seconds after which nothing new starts (480)")
    parser.add_argument("--plan", action="store_true", help="print the rows with their estimates; run nothing")
    parser.add_argument("--rehearse", action="store_true", help="tiny models, on whatever JAX finds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--again", action="store_true", help="rows that are done too")
    parser.add_argument("--results", type=Path, help="folder of the results (benchmarks/accelerator)")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="a CPU's figures to compare with")
    parser.add_argument("--record", action="store_true", help="write the figures of this machine, a CPU")
    # For the processes that this one starts.
    for name in ("--process", "--size", "--file"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--first-image", "--prepare"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _size(options: argparse.Namespace):
    from benchmarks.accelerator.models import FULL, TINY

    return TINY if options.rehearse or options.size == "tiny" else FULL


def all_rows(size) -> list[Row]:
    """Every row, in the order in which they run."""
    from benchmarks.accelerator import checks, timings

    rows = [*checks.ROWS, *timings.rows(size)]
    if importlib.util.find_spec("torch"):
        from benchmarks.accelerator import peer

        rows += peer.rows(size)
    return sorted(rows, key=lambda row: (PROCESSES.index(row.process), row.wave))


def _print_plan(options: argparse.Namespace) -> int:
    from benchmarks.accelerator import page

    lines, total = page.plan(all_rows(_size(options)))
    for name, process, seconds in lines:
        print(f"{name:34}{process:15}{seconds:6.0f} s")
    print(f"{'all, with the start of each process':49}{total:6.0f} s on an H100 (estimated)")
    return 0


def _run_all(options: argparse.Namespace) -> int:
    begin = time.time()
    environment = _environment(options)
    device = _device(environment)
    if device["platform"] == "cpu" and not options.rehearse:
        print(
            "error: JAX finds no accelerator here; install its plugin, for example pip install 'jax[cuda13]', "
            "or try the rows on this machine with --rehearse",
            file=sys.stderr,
        )
        return 2
    name = re.sub(r"[^a-z0-9]+", "-", device["device"].lower()).strip("-")
    folder = options.results or (Path(tempfile.mkdtemp()) if options.rehearse else FOLDER)
    results = Results(folder / f"{name}.json")
    results.describe(device | {"versions": _versions(), "commit": _commit(), "size": _size(options).name})
    wanted = [row for row in all_rows(_size(options)) if options.only in row.name]
    todo = [row for row in wanted if options.again or not results.is_done(row.name)]
    print(f"{device['device']}: {len(todo)} of {len(wanted)} rows to do, results in {results.path}", flush=True)
    command = [sys.executable, "-m", "benchmarks.accelerator", f"--size={_size(options).name}"]
    command += [f"--file={results.path}", f"--figures={options.figures}", f"--until={begin + options.budget}"]
    beside = None
    compiled = [row.name for row in todo if row.name.endswith(", compiled")]
    if compiled and any(row.process == "checks" for row in todo) and not options.rehearse:
        # torch.compile takes minutes, and nobody times the checks.
        beside = subprocess.Popen(
            [*command, "--process=peer", "--prepare", f"--only={json.dumps(compiled)}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    tried: set[str] = set()
    for process in PROCESSES:
        if process == "timings" and beside:
            # What is timed has the machine for itself.
            beside.wait()
        while names := [row.name for row in todo if row.process == process and row.name not in tried]:
            if time.time() > begin + options.budget:
                break
            chosen = [*command, f"--process={process}", f"--only={json.dumps(names)}"]
            status = subprocess.run(chosen, env=environment).returncode
            results = Results(results.path)
            tried |= set(names)
            if status:
                # It costs the row that it was at, and the next process goes on behind that; or all, if it never began.
                at = [name for name in names if "running" in results.rows.get(name, {})]
                for crashed in at or [name for name in names if name not in results.rows]:
                    results.put(crashed, {"error": f"the process ended with status {status}"})
                    print(f"{crashed}: the process ended with status {status}", flush=True)
                tried -= set(names[names.index(at[0]) + 1 :]) if at else set()
    return _conclude(results, wanted, options)


def _conclude(results: Results, wanted: list[Row], options: argparse.Namespace) -> int:
    failed = [(row.name, results.rows[row.name]) for row in wanted if "failed" in results.rows.get(row.name, {})]
    broken = [row.name for row in wanted if "error" in results.rows.get(row.name, {})]
    missing = [row.name for row in wanted if row.name not in results.rows]
    if not options.rehearse:
        from benchmarks.accelerator import page

        page.write()
    if missing:
        print(f"not started, the budget is spent: {', '.join(missing)}; run the command again to go on")
    for name, result in failed:
        print(f"failed: {name}: {', '.join(result['failed'])}", file=sys.stderr)
    if broken:
        print(f"failed: {', '.join(broken)}", file=sys.stderr)
    return 1 if failed or broken else 0


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables of the processes: caches that a second run on the machine finds, and most of the memory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "hgdpo_jax" / "accelerator"
    return {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "xla"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": ".95",
        # PyTorch needs its share in the checks.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
        "DIFFUSERS_VERBOSITY": "error",
        # A rehearsal's time is its compilers'.
        **({"XLA_FLAGS": "--xla_backend_optimization_level=0"} if options.rehearse else {}),
    } | os.environ


def _device(environment: dict[str, str]) -> dict[str, str]:
    """What JAX finds, asked in a process of its own: this one leaves the device to others."""
    code = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if found.returncode:
        raise SystemExit(f"error: JAX does not start: {found.stderr.strip().splitlines()[-1]}")
    platform, kind = found.stdout.strip().splitlines()[-2:]
    return {"platform": platform, "device": kind}


def _versions() -> dict[str, str]:
    names = [name for name in _PACKAGES if importlib.util.find_spec(name)]
    return {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names}


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=FOLDER, capture_output=True, text=True)
    return found.stdout.strip()


def _run_process(options: argparse.Namespace) -> int:
    """Runs the rows of one process, and writes each as soon as it is there."""
    from benchmarks.accelerator.checks import Bench, is_installed
    from benchmarks.accelerator.models import Models

    size = _size(options)
    bench, results = Bench(Models(size), options.figures), Results(Path(options.file))
    names = json.loads(options.only) if options.only else None
    rows = [row for row in all_rows(size) if row.process == options.process and (names is None or row.name in names)]
    for wave in sorted({row.wave for row in rows}):
        started: list[tuple[Row, Any]] = []
        for row in rows:
            if row.wave != wave or time.time() > options.until:
                continue
            if missing := [package for package in row.needs if not is_installed(package)]:
                _report(options, results, row, {"left_out": f"needs {' and '.join(missing)}"})
                continue
            started.append((row, row.run(bench)))
        # All of a wave compile at once.
        ready = [(row, work, _attempt(work.__next__)) for row, work in started]
        for row, work, problem in ready:
            if time.time() > options.until:
                break
            if not options.prepare:
                results.put(row.name, {"running": True})
            begin = time.perf_counter()
            result = problem or _finish(work)
            _report(options, results, row, result | {"took": time.perf_counter() - begin})
    return 0


def _attempt(action) -> dict[str, Any] | None:
    """What went wrong, in one line."""
    try:
        action()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {lines[0][:300] if lines else ''}"}
    return None


def _finish(work) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def run():
        try:
            next(work)
        except StopIteration as stop:
            found.update(stop.value)

    return _attempt(run) or found


def _report(options: argparse.Namespace, results: Results, row: Row, result: dict[str, Any]) -> None:
    if options.prepare:
        return
    results.put(row.name, result)
    if "errors" in result:
        words = ", ".join(
            f"{name} {e['error']:.1e}" if isinstance(e["error"], float) else f"{name} {e['error']}"
            for name, e in result["errors"].items()
        )
        words = f"FAILED ({', '.join(result['failed'])}): {words}" if "failed" in result else f"ok: {words}"
    elif "seconds" in result:
        words = f"{result['seconds'] * 1e3:.1f} ms ({result.get('lowest', result['seconds']) * 1e3:.1f} to "
        words += f"{result.get('highest', result['seconds']) * 1e3:.1f})"
    else:
        words = result.get("left_out") or result.get("error") or "done"
    print(f"{row.name}: {words}", flush=True)


def _record(options: argparse.Namespace) -> int:
    """Writes this machine's figures for both sizes."""
    from benchmarks.accelerator.checks import figures_of
    from benchmarks.accelerator.models import FULL, TINY

    sizes = (TINY,) if options.rehearse else (TINY, FULL)
    known = json.loads(options.figures.read_text()) if options.figures.exists() else {}
    for size in sizes:
        known[size.name] = figures_of(size)
        options.figures.write_text(json.dumps(known, indent=1) + "\n")
    return 0


def _first_image(options: argparse.Namespace) -> int:
    from benchmarks.accelerator.models import Models
    from benchmarks.accelerator.timings import draw_first_image

    draw_first_image(Models(_size(options)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("interrupted; the rows that are done are kept: run the same command to go on", file=sys.stderr)
        sys.exit(130)
