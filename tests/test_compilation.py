"""What XLA is told before it compiles the first program of a process."""

import importlib.metadata
import importlib.util
import os

import pytest

from hgdpo_jax.compilation import spare_memory_of_cpu, usable_cores

FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler"


@pytest.fixture(autouse=True)
def cpu_alone(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_cores_are_those_of_the_process_or_else_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6


def test_flags_of_the_user_s_own_stay_and_win(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=here")
    spare_memory_of_cpu()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=here {FLAG}=false"
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=true")
    spare_memory_of_cpu()
    assert os.environ["XLA_FLAGS"] == f"{FLAG}=true"


def test_compilers_of_accelerators_see_no_flag_of_the_cpu_s(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "libtpu" or None)
    spare_memory_of_cpu()
    assert "XLA_FLAGS" not in os.environ
