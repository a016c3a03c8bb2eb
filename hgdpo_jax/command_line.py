"""What the programs' command lines have in common: --help, mistakes, and the experiment with its changes."""

import re
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from hgdpo_jax.compilation import leave_out_cuda
from hgdpo_jax.errors import UserError, first_line


def parsed(arguments: Sequence[str], values: flags.FlagValues, about: str | None, more: str = "") -> list[str] | None:
    """What of a command line is no flag, once `values` has read it; None where --help was asked for, and is given.

    `about` and `more` stand before and behind the flags. Raises UserError for a flag that is none.
    """
    flags.DEFINE_bool("help", False, "Print this.", short_name="h", flag_values=values)
    try:
        rest = values(["", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{first_line(error)}; --help lists the flags") from error
    if not values.help:
        leave_out_cuda()
        return rest
    lines = [(about or "").strip(), "", "Flags:"]
    width = max(map(len, values))
    for name in values:
        default = f" (default: {values[name].default})" if values[name].default else ""
        lines += [f"  --{name:{width}}  {values[name].help}{default}"] if len(name) > 1 else []
    print("\n".join([*lines, *([more] if more else [])]))
    return None


def given_config(
    arguments: Sequence[str], values: flags.FlagValues, about: str | None, more: str = ""
) -> ConfigDict | None:
    """`parsed` for a program that runs on the experiment that --config names: its config, with its changes."""
    changes = [argument for argument in arguments if re.match(r"--?(no)?config\.", argument)]
    rest = parsed([argument for argument in arguments if argument not in changes], values, about, more)
    if rest is None:
        return None
    if rest:
        raise UserError(f"{' '.join(rest)} is not a flag; --help lists the flags")
    if not values.config:
        raise UserError("no experiment given, expected --config=FILE, or one that ships, for example --config=toon")
    # Not at the top: --help does not wait for JAX, which objectives need.
    from hgdpo_jax.config_files import load_config

    return load_config(values.config, changes)
