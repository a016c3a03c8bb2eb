"""The rooms of the package and who may know whom, read off the import statements."""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hgdpo_jax"

# From top to bottom: a room imports only what stands in its own row or below.
ROWS = [
    {"main"},
    {"planning", "runner", "report", "toon", "command_line", "config_files", "config_limits"},
    {"stages"},
    {"preflight"},
    {"experiment"},
    {"base_config"},
    {
        "objectives",
        "training",
        "evaluation",
        "pages",
        "data",
        "artifacts",
        "checkpoints",
        "run_log",
        "termination",
        "hosts",
        "leases",
        "agreement",
    },
    {"families", "scorers"},
    {"weights", "arguments", "batching"},
    {"models", "adapters", "diffusion", "losses", "sharding", "random_keys"},
    {"compilation", "compute_types", "errors", "files", "plugins", "provenance", "settings", "texts", "user_functions"},
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
# In these rows a room imports nothing of its own row.
APART = {7, 8, 9}
# The public names stand outside: they name rooms as text.
OUTSIDE = {"__init__"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all modules that a syntax tree imports, with the names taken out of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room they mean"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms() -> Iterator[tuple[str, str, ast.Module]]:
    """Path, room and syntax tree of every module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        # What `python -m hgdpo_jax.ROOM` runs is a command, as main is, and calls stages.
        room = "main" if place.stem == "__main__" else place.with_suffix("").parts[0]
        yield str(place), room, ast.parse(path.read_text())


def modules() -> dict[str, ast.Module]:
    """Every module but commands, by its name within the package: of a folder's __init__.py, the folder's."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__main__":
            named[".".join(parts if parts[-1] != "__init__" else parts[:-1])] = ast.parse(path.read_text())
    return named


@functools.cache
def pairs() -> set[tuple[str, str]]:
    """Pairs of modules of which the first imports the second."""
    known = modules()
    found = set()
    for module, tree in known.items():
        for name in imports(tree):
            package, _, name = name.partition(".")
            # What is taken out of a module is none.
            while name not in known:
                name = name.rpartition(".")[0]
            if package == "hgdpo_jax" and name != module:
                found.add((module, name))
    return found


def package_of(module: str) -> str:
    """A module's folder; modules at the top, which have none, stand for themselves."""
    return module if (PACKAGE / module.replace(".", "/")).is_dir() else module.rpartition(".")[0] or module


def importers(*libraries: str) -> set[str]:
    return {room for _, room, tree in rooms() if any(name.split(".")[0] in libraries for name in imports(tree))}


def test_every_module_stands_in_a_known_room():
    assert {room for _, room, _ in rooms()} <= set(ROW_OF) | OUTSIDE


def test_architecture_shows_these_rows():
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    shown = re.findall(r"^\d+\. (`.*)$", page, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in shown] == ROWS


def test_imports_point_downwards():
    wrong = []
    for place, room, tree in rooms():
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] != "hgdpo_jax" or parts[1:2] == [room]:
                continue
            target = parts[1] if len(parts) > 1 else ""
            if room in OUTSIDE or target not in ROW_OF:
                wrong.append(f"{place} imports {name}")
            elif ROW_OF[target] < ROW_OF[room] or (ROW_OF[target] == ROW_OF[room] and ROW_OF[room] in APART):
                wrong.append(f"{place} imports {name}")
    assert wrong == []


def test_a_stage_is_imported_by_no_module():
    # Commands may; a run finds stages by their names.
    def is_stage(module: str) -> bool:
        return module.startswith(("stages.", "toon.stages."))

    assert {pair for pair in pairs() if is_stage(pair[1])} == set()


@pytest.mark.parametrize("place", [str, package_of], ids=["modules", "packages"])
def test_no_imports_form_a_cycle(place: Callable[[str], str]):
    graph: dict[str, set[str]] = {}
    for importer, imported in pairs():
        edge = place(importer), place(imported)
        if edge[0] != edge[1]:
            graph.setdefault(edge[0], set()).add(edge[1])
    # Raises CycleError, with the cycle.
    TopologicalSorter(graph).prepare()


def test_only_the_toon_world_imports_itself():
    assert {pair for pair in pairs() if package_of(pair[1]).startswith("toon")} == {
        pair for pair in pairs() if pair[0].startswith("toon") and pair[1].startswith("toon")
    }


def test_only_models_families_and_adapters_know_flax():
    # The oracle's network serves the toon world alone.
    assert importers("flax") <= {"models", "families", "adapters", "toon"}


def test_only_weights_knows_pytorch_and_its_files():
    assert importers("safetensors", "torch", "diffusers") <= {"weights"}


def test_pytorch_is_imported_only_inside_functions():
    for place, _, tree in rooms():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not {name.split(".")[0] for name in imports(top)} & {"torch", "diffusers"}, place


def test_files_are_opened_through_epath():
    assert importers("pathlib") == set()
    for place, _, tree in rooms():
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "open"], place


def test_only_what_reads_configs_sees_one():
    assert importers("ml_collections") <= {"planning", "runner", "command_line", "config_files", "base_config"}


def family_of(module: str) -> str | None:
    """The family whose folder a module lies in."""
    place = module.split(".")
    return (
        place[1] if place[0] == "families" and len(place) > 1 and (PACKAGE / "families" / place[1]).is_dir() else None
    )


def test_nobody_knows_which_family_a_model_is_of():
    # But for the toon world, whose checkpoint is of a family that exists.
    core = {pair for pair in pairs() if not pair[0].startswith("toon.")}
    assert {pair for pair in core if family_of(pair[1]) not in (None, family_of(pair[0]))} == set()


def test_what_files_of_stable_diffusion_call_its_parts_and_its_sizes_stand_in_its_folder_alone():
    names = re.compile(r"\bunet\b|lora_(unet|te)_|(first|cond)_stage_model|diffusion_model\b|v1-5")
    sizes = {320, 0.00085, 0.18215}
    wrong = []
    for module, tree in modules().items():
        if module.startswith(("families.stable_diffusion", "toon")):
            continue
        documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node not in documentation:
                value = node.value
                if (isinstance(value, str) and names.search(value)) or (not isinstance(value, str) and value in sizes):
                    wrong.append(f"{module}: {value!r}")
    assert wrong == []
