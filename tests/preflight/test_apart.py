"""Compilers in processes of their own."""

import importlib.util
import os

import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.preflight.apart import compiler_environment, require_compiler, run_apart
from hgdpo_jax.preflight.targets import parse_target

TARGETS = {"preflight-cuda": "a100-80gb:4", "preflight-tpu": "v5e:8"}


def variable(name):
    return os.environ.get(name)


def refuse():
    raise UserError("something to mend")


def fail():
    raise ValueError("something unforeseen")


def crash():
    os.write(2, b"the compiler's last words\n")
    os._exit(3)


def test_a_function_runs_in_another_process_with_its_own_environment():
    assert run_apart({"HGDPO_TEST": "there"}, variable, "HGDPO_TEST") == "there"
    assert variable("HGDPO_TEST") is None
    assert run_apart({}, os.getpid) != os.getpid()


def test_errors_of_another_process_are_raised_in_this_one():
    with pytest.raises(UserError, match="something to mend"):
        run_apart({}, refuse)
    with pytest.raises(RuntimeError, match="ValueError: something unforeseen"):
        run_apart({}, fail)


def test_a_compiler_that_crashes_is_an_error_with_its_last_words():
    with pytest.raises(RuntimeError, match="status 3: the compiler's last words"):
        run_apart({}, crash)


@pytest.mark.parametrize("extra", TARGETS)
def test_a_missing_compiler_is_named_by_its_extra(extra, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: [])
    with pytest.raises(UserError, match=rf"pip install 'hgdpo_jax\[{extra}\]'"):
        require_compiler(parse_target(TARGETS[extra]))


@pytest.mark.parametrize("target", TARGETS.values())
def test_compilers_run_nothing_on_the_hardware_of_this_machine(target):
    environment = compiler_environment(parse_target(target))
    assert environment["JAX_PLATFORMS"] == "cpu"
    # What this machine's programs are given is not for another one's.
    assert "host_platform" not in environment["XLA_FLAGS"]
