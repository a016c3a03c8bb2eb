"""When, with which versions and on which devices something is made: for reports, as it decides no result."""

import datetime
import importlib.metadata

import jax


def provenance() -> dict[str, str]:
    """The time, the versions of this package and of JAX, and the devices of all processes, in words."""
    try:
        version = importlib.metadata.version("hgdpo_jax")
    except importlib.metadata.PackageNotFoundError:
        # A clone that is not installed.
        version = "(not installed)"
    return {
        "time": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "hgdpo_jax": version,
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
