"""The programs of an experiment as compilers get them: what precision each of their products asks for."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs.n20_sml import get_config
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import typed
from hgdpo_jax.models import blip
from hgdpo_jax.models.score_head import ScoreHead
from hgdpo_jax.preflight import programs
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.toon.attribute_classifier import AttributeClassifier

# Between them every network of base and scorer, the LoRA, and the gradients of both kinds of training.
PROGRAMS = ("score_pool", "encode_images", "train_policy", "finetune_base")


def products(lowered):
    """The lines of a lowered program that hold its products and convolutions."""
    lines = lowered.as_text().splitlines()
    return [line for line in lines if re.search(r"stablehlo\.(dot_general|convolution)", line)]


def products_of_stage(name, dtype, base, scorer, platforms=("cuda", "tpu")):
    config = get_config()
    config.weights.base, config.weights.scorer, config.dtype = str(base), str(scorer), dtype
    # Here the first level's attention is in blocks, which have a gradient of their own.
    config.pool.width, config.pool.height, config.pool.steps = 96, 128, 2
    config.train.batch_size = config.train.device_batch = 1
    config.finetune.batch_size = config.finetune.device_batch = 1
    program = programs.build_program(name, programs.make_setup(typed(config), name, 1, data_mesh(jax.devices()[:1])))
    return products(program.function.trace(*program.arguments).lower(lowering_platforms=platforms))


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_products_of_a_float32_program_ask_for_float32_on_gpus_and_tpus(name, tiny_base, tiny_scorer):
    found = products_of_stage(name, "float32", tiny_base, tiny_scorer)
    assert len(found) > 10
    assert [line for line in found if line.count("HIGHEST") != 2] == []


@pytest.mark.parametrize("name", ["evaluate_policy", "score_pool"])
def test_no_product_of_a_bfloat16_program_asks_for_more_than_bfloat16(name, tiny_base, tiny_scorer):
    # The kernels of TPUs cannot be lowered together with those of GPUs.
    found = products_of_stage(name, "bfloat16", tiny_base, tiny_scorer, ("cuda",))
    assert len(found) > 10
    # Images are resized in float32, as before.
    assert [line for line in found if "xbf16>" in line and "HIGHEST" in line] == []


VISION = blip.VisionTransformer(blip.VisionConfig(16, 32, 1, 2, 8, 32))
TEXT = blip.TextEncoder(blip.TextConfig(30, 16, 32, 1, 2, 35))
NETWORKS = {
    "BLIP's images": (VISION, jnp.zeros((1, 32, 32, 3))),
    "BLIP's text": (TEXT, jnp.zeros((1, 35), jnp.int32), jnp.zeros((1, 17, 16))),
    "score head": (ScoreHead(), jnp.zeros((1, 16))),
    "attribute classifier": (AttributeClassifier(), jnp.zeros((1, 64, 48, 3))),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_only_score_are_in_float32_too_and_their_gradients(name):
    network, *inputs = NETWORKS[name]
    parameters = jax.eval_shape(network.init, jax.random.key(0), *inputs)

    def loss(parameters):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(network.apply(parameters, *inputs)))

    found = products(jax.jit(jax.grad(loss)).trace(parameters).lower(lowering_platforms=("cuda", "tpu")))
    assert len(found) > 5
    assert [line for line in found if line.count("HIGHEST") != 2] == []


def test_an_adapter_is_merged_in_float32():
    shape = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    merged = jax.jit(lora.merge).trace({"to_q": {"kernel": shape}}, {"to_q": {"down": shape, "up": shape}}, 1.0)
    found = products(merged.lower(lowering_platforms=("cuda", "tpu")))
    assert found
    assert [line for line in found if line.count("HIGHEST") != 2] == []
