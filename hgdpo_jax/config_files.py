"""The config of an experiment: a Python file, and the command line's changes."""

import difflib
import os
import re
from collections.abc import Sequence

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.config_limits import require_limits
from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import expanded


def config_changes(arguments: Sequence[str]) -> list[str]:
    """Those of a command's arguments that change a field, --config.FIELD=VALUE."""
    return [argument for argument in arguments if re.match(r"--?(no)?config\.", argument)]


def read_config(path: str, changes: Sequence[str]) -> ConfigDict:
    """The config of a file with the command line's changes; raises UserError for anything wrong with either."""
    path = str(expanded(path))
    file = epath.Path(path.split(":")[0])
    if not file.is_file():
        raise UserError(f"config file {file} does not exist, expected a Python file such as configs/toon.py")
    config = _parse_config(path, [])
    fields = [name for name, _ in _fields(config)]
    for change in changes:
        name = re.sub(r"^--?(no)?config\.", "", change.split("=")[0])
        if name not in fields and not any(field.startswith(f"{name}.") for field in fields):
            near = difflib.get_close_matches(name, fields, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"the fields are in {_base_config_path()}"
            raise UserError(f"config has no field {name}: {hint}")
    config = _parse_config(path, changes)
    config.name = config.name or file.stem
    require_compute_type(config.dtype, "config.dtype")
    for name, value in _fields(config):
        require_limits(name, value)
    return config


def _parse_config(path: str, changes: Sequence[str]) -> ConfigDict:
    argv = ["hgdpo_jax.main", f"--config={path}", *changes]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        return values.config.lock()
    except flags.Error as error:
        raise UserError(f"{first_line(error)}; its meaning and unit are in {_base_config_path()}") from error
    except Exception as error:
        raise UserError(f"config file {path} failed with {type(error).__name__}: {first_line(error)}") from error


def _fields(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """All fields of a config by their dotted names."""
    fields: list[tuple[str, object]] = []
    for name, value in config.items():
        fields += _fields(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(f"{prefix}{name}", value)]
    return fields


def _base_config_path() -> str:
    return os.path.relpath(epath.Path(__file__).parent / "base_config.py")
