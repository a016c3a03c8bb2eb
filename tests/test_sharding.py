import os
import subprocess
import sys

import numpy as np

from hgdpo_jax.sharding import data_mesh, shard_batch


def run_on_four_devices(program):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    preamble = "import jax, numpy as np\nfrom hgdpo_jax.random_keys import *\nfrom hgdpo_jax.sharding import *\n"
    result = subprocess.run([sys.executable, "-c", preamble + program], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_batch_is_divided_over_a_meshs_devices_and_parameters_lie_whole_on_each():
    run_on_four_devices("""
mesh = data_mesh()
assert mesh.size == 4
batch = shard_batch({"latents": np.arange(24.0).reshape(8, 3), "key": training_key(0, 1), "scale": 0.5}, mesh)
pieces = sorted(batch["latents"].addressable_shards, key=lambda shard: shard.device.id)
assert [piece.data.tolist() for piece in pieces] == np.arange(24.0).reshape(4, 2, 3).tolist()
assert batch["key"].is_fully_replicated and batch["scale"].is_fully_replicated
weights = replicate({"kernel": np.ones((3, 5))}, mesh)["kernel"]
assert [shard.data.shape for shard in weights.addressable_shards] == [(3, 5)] * 4
result = jax.jit(lambda x, w: x @ w)(batch["latents"], weights)
assert [shard.data.shape for shard in result.addressable_shards] == [(2, 5)] * 4
half = shard_batch(np.ones((4, 2)), data_mesh(jax.devices()[1:3]))
assert {device.id for device in half.devices()} == {1, 2}
""")


def test_noise_is_the_same_on_four_devices_as_on_one():
    run_on_four_devices("""
noise = image_noise(0, list("abcdefgh"), np.arange(8), (4, 3, 4))
keys = shard_batch(jax.numpy.stack([image_key(0, p, i) for i, p in enumerate("abcdefgh")]), data_mesh())
divided = jax.jit(jax.vmap(lambda key: jax.random.normal(key, (4, 3, 4))))(keys)
assert len(divided.sharding.device_set) == 4
assert (np.asarray(divided) == np.asarray(noise)).all()
""")


def test_one_device_holds_the_whole_batch():
    batch = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(shard_batch(batch, data_mesh()), batch)
