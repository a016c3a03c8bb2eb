"""The cost of an experiment on accelerators that are not present: memory, arithmetic, hours, price.

    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=a100-80gb:4
    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=v5e:8 --price_per_hour=1.2 --json=v5e.json
    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=h100:8 --config.train.device_batch=8 \\
        --config.preflight.programs="('train_policy',)" --config.preflight.largest_batch=False

The programs are compiled for that hardware and not run; each takes minutes. This needs the extra preflight-cuda or
preflight-tpu. Without weights in the config, the shapes are the family's published ones and PickScore's.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from hgdpo_jax.command_line import given_config
from hgdpo_jax.config_files import checked
from hgdpo_jax.files import expanded, write_json
from hgdpo_jax.termination import exit_status


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name); returns the exit status."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    from hgdpo_jax.preflight.targets import CHIPS

    values = flags.FlagValues()
    names = ", ".join(CHIPS)
    flags.DEFINE_string("config", None, "The experiment: a Python file, or one that ships.", flag_values=values)
    flags.DEFINE_string(
        "target", None, f"Devices, NAME:COUNT, of {names}; by default the config's.", flag_values=values
    )
    flags.DEFINE_float(
        "price_per_hour", None, "Price of one device per hour; by default the config's.", flag_values=values
    )
    flags.DEFINE_string("json", None, "File for all figures as JSON.", flag_values=values)
    more = "--config.FIELD=VALUE changes a field of the config, config.preflight's included."
    config = given_config(arguments, values, __doc__, more)
    if config is None:
        return
    for name in ("target", "price_per_hour"):
        if values[name].value is not None:
            config.preflight[name] = values[name].value

    # Imported here, so that --help is fast.
    from hgdpo_jax.stages import preflight

    settings = checked(config)
    preflight.check(settings)
    found, table = preflight.examine(settings, preflight.compile_apart(settings))
    print(table, end="", flush=True)
    if values.json:
        write_json(expanded(values.json), found, sort_keys=False)


if __name__ == "__main__":
    # This process only sums up results: leave the machine's accelerators to others.
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.exit(main(sys.argv[1:]))
