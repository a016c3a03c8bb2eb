"""What an experiment takes on accelerators that one does not have: memory, arithmetic, hours, price.

    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=a100-80gb:4
    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=v5e:8 --price_per_hour=1.2 --json=v5e.json
    python -m hgdpo_jax.preflight --config=configs/n20_sml.py --target=h100:8 --config.train.device_batch=8 \\
        --config.preflight.programs="('train_policy',)" --config.preflight.largest_batch=False

The programs are compiled for that hardware and not run; each takes minutes. It needs the extra preflight-cuda for GPUs
or preflight-tpu for TPUs. Without weights in the config the shapes are those of Stable Diffusion 1.5 and PickScore.
"""

import json
import os
import sys
from collections.abc import Sequence

from absl import flags

from hgdpo_jax.base_config import typed
from hgdpo_jax.config_files import config_changes, load_config
from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import expanded
from hgdpo_jax.termination import exit_status
from hgdpo_jax.texts import show_all_characters


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name); returns the exit status."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    from hgdpo_jax.preflight.targets import CHIPS

    values = flags.FlagValues()
    names = ", ".join(CHIPS)
    flags.DEFINE_string(
        "config",
        None,
        "The experiment: a Python file, or the name of one that ships.",
        flag_values=values,
    )
    flags.DEFINE_string("target", None, f"Devices, NAME:COUNT, of {names}; else the config's.", flag_values=values)
    flags.DEFINE_float("price_per_hour", None, "What one device costs an hour; else the config's.", flag_values=values)
    flags.DEFINE_string("json", None, "File for all figures as JSON.", flag_values=values)
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)
    changes = config_changes(arguments)
    try:
        rest = values(["hgdpo_jax.preflight", *(argument for argument in arguments if argument not in changes)])[1:]
    except flags.Error as error:
        raise UserError(f"{first_line(error)}; --help lists the flags") from error
    if values.help:
        lines = [
            f"  --{name:14}  {values[name].help}" for name in ("config", "target", "price_per_hour", "json", "help")
        ]
        lines.append("  --config.FIELD    Changes a field of the config, those of config.preflight among them.")
        print("\n".join([(__doc__ or "").strip(), "", "Flags:", *lines]))
        return
    if rest:
        raise UserError(f"{' '.join(rest)} is not a flag; --help lists the flags")
    if not values.config:
        raise UserError("no experiment given, expected --config=FILE, or one that ships, for example --config=n20_sml")
    for name in ("target", "price_per_hour"):
        if values[name].value is not None:
            changes.append(f"--config.preflight.{name}={values[name].value}")
    config = typed(load_config(values.config, changes))

    # Not at the top: --help does without.
    from hgdpo_jax.stages import preflight

    preflight.check(config)
    found, table = preflight.examine(config, preflight.compile_apart(config))
    print(table, end="", flush=True)
    if values.json:
        expanded(values.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    # This process only adds up: it leaves the machine's accelerators to others.
    os.environ["JAX_PLATFORMS"] = "cpu"
    show_all_characters()
    sys.exit(main(sys.argv[1:]))
