"""What the devices of a host say to each other, read off the compiled programs."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import functools, json, re, sys
import jax, jax.numpy as jnp, numpy as np
from hgdpo_jax.adapters import lora
from hgdpo_jax.batching import on_devices
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.sharding import data_mesh, replicate, shard_batch
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.training.accumulation import make_accumulating_step
from hgdpo_jax.training.optimizer import make_optimizer

model, rounded = (StableDiffusion.load(sys.argv[1], dtype=dtype) for dtype in ("float32", "bfloat16"))
shape = model.latent_shape(48, 64)
rows = 16
assert data_mesh().size == 8

def collectives(compiled):
    # Each with the elements of its results, which are one shape or a tuple of them.
    found = {}
    for line in compiled.as_text().splitlines():
        kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        match = re.search(rf"= (.+?) ({kinds})(-start)?[(]", line)
        if match:
            shapes = re.findall(r"[a-z]+[0-9]+[[]([0-9,]*)[]]", match[1])
            elements = sum(int(np.prod([int(n) for n in dims.split(",") if n])) for dims in shapes)
            found[match[2]] = found.get(match[2], 0) + elements
    return found

adapter = lora.initialize(jax.random.key(0), model.lora_targets, rank=4)
adapter = replicate(adapter, data_mesh())
states = on_devices(np.zeros((rows, 77, model.unet.config.cross_attention_dim), np.float32))
latents = on_devices(np.zeros((rows, *shape), np.float32))
sample = jax.jit(functools.partial(model.sample, steps=3, guidance=2.0, latent_normalization=True))
decode = jax.jit(lambda parameters, x: model.encode(parameters, model.decode_checked(parameters, x)[0]))
results = {
    "sample": collectives(sample.lower(model.parameters, latents, states, states, [(adapter, 0.5)]).compile()),
    "decode": collectives(decode.lower(model.parameters, latents).compile()),
}
optimizer = make_optimizer(learning_rate=1e-4, max_gradient_norm=1.0)
state = replicate({"parameters": adapter, "optimizer": optimizer.init(adapter)}, data_mesh())
batch = {name: np.zeros((rows, *shape), np.float32) for name in ("winner_latents", "loser_latents")}
batch, key = shard_batch((batch | {"tokens": np.zeros((rows, 77), np.int32)}, training_key(0, 1)), data_mesh())
draw = functools.partial(DPO().draw, timesteps=1000)
for of, dtype, parts in ((model, "float32", 1), (model, "float32", 2), (rounded, "bfloat16", 1)):
    step = make_accumulating_step(functools.partial(policy_losses, DPO(), of), optimizer, draw, parts, data_mesh())
    results[f"step in {parts}, {dtype}"] = collectives(step.lower(state, of.parameters, batch, key).compile())
results["gradients"] = sum(leaf.size for leaf in jax.tree.leaves(adapter))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def collectives(tiny_base):
    """For each program on eight devices, the elements that each kind of collective moves."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", PROGRAM, str(tiny_base)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_devices_draw_and_encode_images_without_a_word_to_each_other(collectives):
    assert collectives["sample"] == collectives["decode"] == {}


# In bfloat16 policy and reference are rounds of a loop.
@pytest.mark.parametrize(("parts", "dtype"), [(1, "float32"), (2, "float32"), (1, "bfloat16")])
def test_a_training_step_shares_its_gradients_and_what_is_logged_and_nothing_else(collectives, parts, dtype):
    step = collectives[f"step in {parts}, {dtype}"]
    assert step.keys() == {"all-reduce"}
    # At most as many scalars as are logged.
    assert 0 <= step["all-reduce"] - collectives["gradients"] <= 16
