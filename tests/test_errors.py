"""What errors say to the person who can mend them, read off every place that raises one."""

import ast
import dataclasses
import re
from pathlib import Path

import hgdpo_jax
from hgdpo_jax.base_config import Experiment

PACKAGE = Path(hgdpo_jax.__file__).parent
# Functions whose first argument is the text of a message, or its beginning.
MESSAGES = ("UserError", "as_user_error", "warn", "_warn_once")
ACTIONS = (
    "add|begin|check|choose|compute|convert|copy|correct|delete|fetch|give|install|keep|leave|let|lower|mend|merge|pip|put|"
    "remove|replace|request|resume|run|save|see|set|start|take|train|type|uninstall|unset|wait|write|--help"
)
# `hosts.together` and `by_first` raise on all processes what one of them said.
HANDED_ON = ("{words} process {number}: {words}", "{words} {from_first} {}")
# What was expected, or behind a comma, colon or "or" what to do.
SAYS_WHAT_TO_DO = re.compile(
    rf"\bexpected\b|did you mean|(?:[:;,.)}}] |\bor )(?:(?:or|and|then|,) )?(?:{ACTIONS})\b", re.I
)
SECTIONS = {field.name: field.type for field in dataclasses.fields(Experiment) if dataclasses.is_dataclass(field.type)}
FIELDS = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in SECTIONS.items()} | {
    "dpo": {"beta", "statistic_weight", "statistic_stride"}
}
# A setting in a message: its section may be a value.
SETTING = re.compile(
    r"(?<![\w./])(?P<before>config\.)?(?:"
    + "|".join(rf"{name}\.(?:{'|'.join(fields)})" for name, fields in FIELDS.items())
    + rf"|\{{[^{{}}]*\}}\.(?:{'|'.join(sorted(set().union(*FIELDS.values()) - {'name'}))}))\b(?!\()"
)


def text_of(node: ast.AST, strings: dict[str, list[ast.AST]], depth: int = 2) -> str:
    """The fixed words of an expression; values stand in braces, with the words that a variable may hold behind them."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, strings, depth) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, strings, depth)
    if isinstance(node, ast.BinOp):
        return text_of(node.left, strings, depth) + text_of(node.right, strings, depth)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body, strings, depth)} {text_of(node.orelse, strings, depth)}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("format", "rstrip"):
        return text_of(node.func.value, strings, depth)
    called = node.func if isinstance(node, ast.Call) else node
    if isinstance(called, ast.Name) and depth:
        held = " ".join(text_of(value, strings, depth - 1) for value in strings.get(called.id, []))
        return f"{{{called.id}}}" + (f" {held}" if held.strip() else "")
    return "{}"


def messages():
    """Place, kind and text of each message of the package, but of those that hand on the text of another UserError."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        module = {
            **assigned(tree.body),
            **{
                each.name: [node.value for node in ast.walk(each) if isinstance(node, ast.Return)] for each in functions
            },
        }
        for function in [tree, *functions]:
            strings = module | (assigned(ast.walk(function)) if function is not tree else {})
            for node in calls(function):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node.func.id, text_of(node.args[0], strings)


def assigned(nodes) -> dict[str, list[ast.AST]]:
    """What variables are set to."""
    found: dict[str, list[ast.AST]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
        elif isinstance(node, ast.NamedExpr):
            found.setdefault(node.target.id, []).append(node.value)
    return found


def calls(function):
    """Calls of MESSAGES in a function, but neither in those within it nor where a UserError was caught."""
    open_nodes = list(ast.iter_child_nodes(function))
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MESSAGES:
            yield node
        caught = isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or node) == "UserError"
        if not isinstance(node, ast.FunctionDef) and not caught:
            open_nodes += ast.iter_child_nodes(node)


def names_something_and_says_what_to_do(text: str) -> bool:
    return bool(SAYS_WHAT_TO_DO.search(text) and re.search(r"\{|config\.|--|hgdpo_jax", text))


def test_every_error_names_something_and_says_what_was_expected_or_what_to_do():
    wrong = [
        f"{place}: {text}"
        for place, kind, text in messages()
        if kind == "UserError" and text not in HANDED_ON and not names_something_and_says_what_to_do(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_setting_in_a_message_is_written_as_one_types_it():
    wrong = [
        f"{place}: {match[0]} in {text}"
        for place, _, text in messages()
        for match in SETTING.finditer(text)
        if not match["before"]
    ]
    assert not wrong, "\n".join(wrong)


def test_the_checks_see_what_is_wrong_and_accept_what_is_right():
    assert len(list(messages())) > 200
    for text in ("{path} cannot be read: {}", "no scorer, expected one", "{path} is not set", "set it"):
        assert not names_something_and_says_what_to_do(text)
    for text in ("{path} is damaged: delete {folder}", "config.pool.size is {}, expected 2", "{x} is a file; give {y}"):
        assert names_something_and_says_what_to_do(text)
    found = SETTING.findall("pool.size config.pool.size {section}.batch_size config.{section}.batch_size {path}.json")
    assert found == ["", "config.", "", "config."]
