"""What XLA is told before it compiles the first program of a process."""

import glob
import importlib.metadata
import importlib.util
import os
import sys

import pytest

from hgdpo_jax.compilation import leave_out_cuda, spare_memory_of_cpu, usable_cores

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


@pytest.mark.parametrize(
    ("devices", "platforms", "hidden"),
    [((), "", True), ((), "cpu", True), (("/dev/nvidia0",), "", False), ((), "cuda,cpu", False)],
)
def test_cuda_is_left_out_where_there_is_no_gpu_and_nobody_asks_for_it(monkeypatch, devices, platforms, hidden):
    plugin = importlib.metadata.EntryPoint("cuda99", "jax_plugins.xla_cuda99", "jax_plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [plugin])
    monkeypatch.setattr(glob, "glob", lambda pattern: [name for name in devices if name.startswith(pattern[:-1])])
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    names = ("jax_plugins.xla_cuda99", "jax_cuda99_plugin")
    try:
        leave_out_cuda()
        assert [name in sys.modules for name in names] == [hidden, hidden]
        if hidden:
            # What JAX does with each.
            importlib.import_module(names[0]).initialize()
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"{names[1]}._versions")
    finally:
        for name in names:
            sys.modules.pop(name, None)
