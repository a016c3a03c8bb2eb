"""The config of an experiment: a Python file, or the name of one that ships with the package, and changes to it."""

import contextlib
import difflib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from hgdpo_jax.artifacts import flat
from hgdpo_jax.base_config import Experiment, base_config, typed
from hgdpo_jax.compute_types import require_compute_type
from hgdpo_jax.config_limits import require_limits
from hgdpo_jax.errors import UserError, first_line
from hgdpo_jax.files import expanded, similar

# What ml_collections says of a field that does not exist, and of a value of another type.
_NO_FIELD = re.compile(r"""[\\'"]*(?:Key )?[\\'"]*(\w+)[\\'"]*(?:$| does not exist|\\n)""")
_WRONG_TYPE = re.compile(r"Could not override field '(\w+)'.*?\. (.*) is of original type .* to type <class '(.*)'>")
_TYPES = {
    "bool": "True or False",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "tuple": "a tuple",
    "ConfigDict": "a section: set its fields, as in config.pool.size = 4",
}


def load_config(path: str, changes: Sequence[str] = ()) -> ConfigDict:
    """The config of a file, "configs/mine.py", or of one that ships with the package, "toon".

    What stands behind a colon is given to its get_config. `changes` are those of the command line,
    --config.FIELD=VALUE. Raises UserError for anything wrong with either.
    """
    name, colon, row = path.partition(":")
    file = _config_file(name)
    path = f"{file}{colon}{row}"
    with _siblings_importable(file):
        config = _parse_config(path, [])
        try:
            typed(config)
        except UserError as error:
            raise UserError(f"config file {file}: {error}") from error
        fields = list(flat(config.to_dict()))
        for change in changes:
            name = re.sub(r"^--?(no)?config\.", "", change.split("=")[0])
            if name not in fields and not any(field.startswith(f"{name}.") for field in fields):
                raise UserError(f"config.{name} is not a setting: {_hint(name, fields)}")
        config = _parse_config(path, changes)
    config.name = config.name or file.stem
    checked(config)
    return config


def checked(config: ConfigDict) -> Experiment:
    """A config as typed values; raises UserError where it is not made of base_config(), or for an impossible value."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config is {config!r:.60}, expected that of load_config(...) or base_config()")
    experiment = typed(config)
    require_limits(experiment)
    require_compute_type(experiment.dtype, "config.dtype")
    return experiment


def _config_file(name: str) -> epath.Path:
    file, packaged = expanded(name), _packaged_configs()
    names = sorted(path.stem for path in packaged.glob("*.py"))
    if name in names and not file.is_file():
        return packaged / f"{name}.py"
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, names, 1)
        shipped = f"{near[0]}, which ships" if near else f"one that ships: {', '.join(names)}"
        own = f"{found}" if (found := similar(file)) else "a Python file of yours"
        raise UserError(f"config file {file} does not exist, expected {own} or {shipped}")
    return file


def _packaged_configs() -> epath.Path:
    """configs/: of an installed wheel in the package, of a clone beside it."""
    package = epath.Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


@contextlib.contextmanager
def _siblings_importable(file: epath.Path) -> Iterator[None]:
    """Within it a config can import others by `from configs.toon import get_config`, wherever it lies.

    The name is looked for in the config's own folder if that is called configs, then where Python looks, then among
    those that ship with the package. Modules of this name that the caller has imported stay the caller's.
    """
    own = os.path.dirname(os.path.abspath(file))
    finder = _Siblings([own] if os.path.basename(own) == "configs" else [])
    callers = _siblings()
    for name in callers:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in _siblings():
            del sys.modules[name]
        sys.modules.update(callers)


def _siblings() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "configs"}


class _Siblings(importlib.abc.MetaPathFinder):
    def __init__(self, own: Sequence[str]):
        self.own = own

    def find_spec(self, fullname, path, target=None):
        """The package `configs`, an empty one where there is none, and its modules."""
        find = importlib.machinery.PathFinder.find_spec
        if fullname == "configs":
            return find(fullname) or importlib.machinery.ModuleSpec(fullname, None, is_package=True)
        if fullname.rpartition(".")[0] == "configs":
            return find(fullname, [*self.own, *path, str(_packaged_configs())])
        return None


def _parse_config(path: str, changes: Sequence[str]) -> ConfigDict:
    argv = ["hgdpo_jax.main", f"--config={path}", *changes]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config = values.config
        if config is None or isinstance(config, dict):
            raise TypeError(f"get_config() returned {type(config).__name__}, expected the ConfigDict of base_config()")
        return config.lock()
    except flags.Error as error:
        if not changes:
            raise UserError(f"config file {path}{_mistake(error, path)}") from error
        raise UserError(f"{_wrong_value(first_line(error))}; see its meaning in {_base_config_path()}") from error
    except Exception as error:
        raise UserError(f"config file {path}{_mistake(error, path)}") from error


def _wrong_value(text: str) -> str:
    """absl's message of a value that it cannot read, in words of types."""
    match = re.match(r"flag --config\.([\w.]+)=(.*?): ", text)
    kind = type(flat(base_config().to_dict()).get(match[1])).__name__ if match else ""
    return f"config.{match[1]} is {match[2]!r}, expected {_TYPES[kind]}" if match and kind in _TYPES else text


def _mistake(error: BaseException, path: str) -> str:
    """The line of a config file at which it failed, and what is wrong there."""
    file = os.path.abspath(path.partition(":")[0])
    frames: list[traceback.FrameSummary] = []
    # absl hides TypeErrors and ValueErrors of a file behind others.
    hidden: BaseException | None = error
    while hidden and not frames:
        error, tracebacks = hidden, traceback.extract_tb(hidden.__traceback__)
        frames = [frame for frame in tracebacks if os.path.abspath(frame.filename) == file]
        hidden = hidden.__cause__ or hidden.__context__
    place = f", line {frames[-1].lineno}" if frames else ""
    line = frames[-1].line if frames else ""
    text = first_line(error)
    if isinstance(error, AttributeError | KeyError) and (match := _NO_FIELD.match(text)):
        name = _dotted(match[1], line)
        return f"{place}: config.{name} is not a setting: {_hint(name, list(flat(base_config().to_dict())))}"
    if match := _WRONG_TYPE.match(text):
        expected = match[3].rpartition(".")[2]
        return f"{place}: config.{_dotted(match[1], line)} is {match[2]}, expected {_TYPES.get(expected, expected)}"
    return f"{place} failed with {type(error).__name__}: {text}; correct the file"


def _dotted(name: str, line: str | None) -> str:
    """The field's name with the sections before it, as a line of a config file has it behind its variable."""
    match = re.search(rf"\w+\.((?:\w+\.)*{name})\b", line or "")
    return match[1] if match else name


def _hint(name: str, fields: Sequence[str]) -> str:
    if name.split(".")[0] == "loss":
        return (
            "loss.kind is now config.objective, loss.beta is config.dpo.beta, "
            "loss.statistic_* are config.dpo.statistic_*"
        )
    section, _, leaf = name.rpartition(".")
    same = [field for field in fields if field.rpartition(".")[2] == leaf]
    near = difflib.get_close_matches(name, same, 3, 0.0)

    def likeness(field: str) -> float:
        its_section, _, its_leaf = field.rpartition(".")
        alike = difflib.SequenceMatcher(None, leaf, its_leaf).ratio()
        near_by = difflib.SequenceMatcher(None, section, its_section).ratio() if section else 0
        return 2 * alike + near_by if alike >= 0.6 else 0

    best = max([*fields, *(field.rpartition(".")[0] for field in fields)], key=likeness)
    near = near or [best] * (likeness(best) > 0)
    suggested = " or ".join(f"config.{field}" for field in near)
    return f"did you mean {suggested}?" if near else f"the settings are in {_base_config_path()}"


def _base_config_path() -> str:
    return os.path.relpath(epath.Path(__file__).parent / "base_config.py")
