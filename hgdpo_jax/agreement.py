"""What all processes of a run must have in common, looked at before they work."""

import contextlib
import glob
import hashlib
import importlib.metadata
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import StageRun, differences
from hgdpo_jax.errors import UserError, first_line

# Hosts with other versions of these may compute other numbers.
_DECISIVE_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow", "transformers")
# And those that were told otherwise by the environment.
_DECISIVE_OPTIONS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def require_alike(config: Mapping[str, Any], stages: Sequence[StageRun]) -> None:
    """Raises UserError on every host where one has another config, other weights or other packages than the first."""
    if hosts.count() == 1:
        return
    settings: dict[str, Mapping[str, Any]] = {}

    def collect(run: StageRun) -> None:
        settings[run.name] = run.settings
        for earlier in run.inputs.values():
            collect(earlier)

    for stage in stages:
        collect(stage)
    own = {
        "stages": [stage.name for stage in stages],
        "config": config,
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
    for name in sorted(glob.glob("**/*.py", root_dir=folder, recursive=True)):
        source.update(f"{name} ".encode() + (folder / name).read_bytes())
    return {name: importlib.metadata.version(name) for name in _DECISIVE_PACKAGES} | {
        "hgdpo_jax": source.hexdigest()[:16]
    }


def require_workdir(workdir: epath.Path) -> None:
    """Raises UserError on every host where one cannot write into the workdir, or sees another one than the first."""
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
