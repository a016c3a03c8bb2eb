"""An experiment of two stages, draw and judge, which take no time."""

import contextlib
import importlib
import sys

import hgdpo_jax.stages

NAMES = ("draw", "judge")

CONFIG = """
from hgdpo_jax.base_config import base_config

def get_config():
    config = base_config()
    config.stages = ("draw", "judge")
    return config
"""

DRAW = """
import os
import time

INPUTS = ()

def settings(config):
    return {"seed": config.seed, "pool": {"steps": config.pool.steps}}

def plan(config, run):
    return f"{config.pool.steps} steps"

def run(config, run):
    if go := os.environ.get("WAIT_FOR"):
        (run.folder / "drawing.partial").write_text("half")
        while not os.path.exists(go):
            time.sleep(0.02)
    with (run.folder / "drawn").open("a") as file:
        file.write("drawn\\n")
"""

JUDGE = """
import errno
import os
import signal
from hgdpo_jax.errors import UserError

INPUTS = ("draw",)

def settings(config):
    return {"rank": config.adapter.rank}

def plan(config, run):
    return "one look"

def check(config):
    if config.adapter.rank < 1:
        raise UserError(f"adapter.rank is {config.adapter.rank}, expected at least 1")

def run(config, run):
    drawn = (run.input("draw") / "drawn").read_text()
    if trouble := os.environ.get("TROUBLE"):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")
        hidden = RuntimeError("write failed: No space left on device; in some C++")
        if trouble == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("SIGTERM came too late")
        read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), "a/file")
        full_device = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes")
        no_folder = OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "a/file")
        more = {"memory": MemoryError("5 bytes"), "device": full_device, "file": no_folder}
        errors = more | {"interrupt": KeyboardInterrupt(), "bug": ZeroDivisionError("oh\\nno")}
        raise (errors | {"full": full, "hidden": hidden, "read-only": read_only})[trouble]
    (run.folder / "report").mkdir()
    (run.folder / "report" / "index.html").write_text(drawn)
"""


@contextlib.contextmanager
def in_place(folder, monkeypatch):
    """Writes the stages and the config tiny.py into a folder; within it they are the stages that there are."""
    stages = folder / "stages"
    stages.mkdir()
    (stages / "draw.py").write_text(DRAW)
    (stages / "judge.py").write_text(JUDGE)
    (folder / "tiny.py").write_text(CONFIG)
    monkeypatch.setattr(hgdpo_jax.stages, "__path__", [str(stages)])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    importlib.invalidate_caches()
    forget()
    yield
    forget()


def forget():
    """Lets the next run load the stages anew."""
    for name in NAMES:
        sys.modules.pop(f"hgdpo_jax.stages.{name}", None)
