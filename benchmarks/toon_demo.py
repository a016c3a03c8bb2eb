"""The toon demo from end to end: where its time goes, and how much of it compiled programs are running."""

import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONFIG = "configs/toon.py"
_INTERVAL = 0.05
# Threads of the compiler, and of what reads and writes arrays.
_OTHERS = ("llvm", "ts_pool")


def measure(folder: Path) -> dict[str, Any]:
    """Seconds of each stage, and the share that compiled programs run, in a second start: nothing is compiled in it.

    A program runs where at an instant one of XLA's threads does; this is looked at 20 times a second. What the main
    thread runs itself, as it does with the smallest programs, counts as Python's. `first_seconds` is the first start's
    time, which compiles everything.
    """
    folder = folder / "toon_demo"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        first = _run_apart(folder)
        shutil.rmtree(folder / "workdir")
        return _run_apart(folder) | {"first_seconds": first["seconds"]}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_apart(folder: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, folder, time.time()))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _run(sender: Any, folder: Path, started: float) -> None:
    import os

    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    stages: list[dict[str, Any]] = []

    def timed(name: str, call: Callable[[], object]) -> Any:
        with _Watch() as watch:
            result = call()
        stages.append({"name": name, "seconds": watch.seconds, "in_programs": watch.busy * watch.seconds})
        return result

    main, config = _load()
    stages.append({"name": "starting", "seconds": time.time() - started, "in_programs": 0.0})
    for stage in config.stages:
        status = timed(
            stage,
            lambda stage=stage: main([f"--config={CONFIG}", f"--workdir={folder / 'workdir'}", f"--stage={stage}"]),
        )
        if status:
            raise SystemExit(f"{stage} ended with status {status}")
    seconds, in_programs = (sum(stage[key] for stage in stages) for key in ("seconds", "in_programs"))
    sender.send({"seconds": seconds, "share_in_programs": in_programs / seconds, "stages": stages})


def _load() -> tuple[Callable[[list[str]], int], Any]:
    import jax

    from hgdpo_jax.config_files import load_config
    from hgdpo_jax.main import main

    # Else the first stage would be taken to import it.
    assert jax.__name__
    return main, load_config(CONFIG, [])


class _Watch:
    """Seconds of a block, and the share of instants at which a thread ran that is XLA's."""

    def __enter__(self) -> "_Watch":
        self._ended = threading.Event()
        self._seen = self._busy = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._begin = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.monotonic() - self._begin
        self._ended.set()
        self._thread.join()
        self.busy = self._busy / max(1, self._seen)

    def _look(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self._seen += 1
            self._busy += _programs_run()


def _programs_run() -> bool:
    pythons = {str(thread.native_id) for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        if task.name in pythons:
            continue
        try:
            # "2655 (tf_XLAEigen) R ..."
            name, _, rest = (task / "stat").read_text().partition(" (")[2].rpartition(") ")
        except OSError:
            continue
        if rest.startswith("R") and not name.startswith(_OTHERS):
            return True
    return False
