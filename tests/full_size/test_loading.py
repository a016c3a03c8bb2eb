"""Memory and time that Stable Diffusion 1.5 takes to load."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgdpo_jax.families.stable_diffusion.files import read_folder, write_folder

pytestmark = pytest.mark.slow

LOAD = """
import sys, time
import jax
from hgdpo_jax import StableDiffusion
from hgdpo_jax.weights.clip_tokenizer import load_tokenizer

load_tokenizer(sys.argv[1] + "/tokenizer")  # Slow to import, and no weights.
jax.block_until_ready(jax.device_put(0))
print("start", flush=True)
sys.stdin.readline()
began = time.monotonic()
model = StableDiffusion.load(sys.argv[1], dtype="bfloat16")
jax.block_until_ready(model.parameters)
leaves = jax.tree.leaves(model.parameters)
print(time.monotonic() - began, sum(x.nbytes for x in leaves), max(x.nbytes for x in leaves), flush=True)
"""


@pytest.fixture(scope="module")
def folders(base_folder, make_folder):
    half = make_folder("half")
    write_folder(half, read_folder(base_folder), storage="float16")
    return {"float32": base_folder, "float16": half}


def anonymous_bytes(process):
    """Memory that a process filled itself: pages of the mapped file can be dropped at any time and do not count."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    # One that has ended has none.
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_loading_to_bfloat16_holds_one_copy_and_one_tensor(folders, storage, report):
    # In a process of its own, because freed memory does not always return, and watched from outside, because the
    # conversion of a tensor lets no other thread run.
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(folders[storage])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "start\n"
        before = peak = anonymous_bytes(process)
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process))
            time.sleep(0.002)
        seconds, copy, tensor = map(float, process.stdout.readline().split())
    report(f"loading from {storage}, seconds", seconds)
    report(f"loading from {storage}, peak memory in copies of the weights", (peak - before) / copy)
    # And 100 MB for the tokenizer, for tracing, and for what malloc keeps.
    assert peak - before < copy + tensor + 1e8
    assert seconds < 60
