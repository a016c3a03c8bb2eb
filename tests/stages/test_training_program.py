"""The training step of a small model, as it is handed to a compiler and as one compiles it."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs.n20_sml import get_config as n20_sml
from configs.sft_winners import get_config as sft_winners
from hgdpo_jax import objectives
from hgdpo_jax.base_config import typed
from hgdpo_jax.data.pairs import write_pairs
from hgdpo_jax.experiment.models import load_base
from hgdpo_jax.experiment.training import make_training, training_batches
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.preflight import programs
from hgdpo_jax.preflight.arithmetic import matrix_products, total_flops
from hgdpo_jax.preflight.compilation import measure
from hgdpo_jax.preflight.targets import CHIPS
from hgdpo_jax.sharding import data_mesh

PAIRS = 2
CPU = dataclasses.replace(CHIPS["a100-80gb"], platform="cpu")


@pytest.fixture(scope="module")
def small(tiny_base):
    """Makes a config of this file's programs: bfloat16, two pairs at once."""

    def make(get_config=n20_sml, width=48, height=64):
        config = get_config()
        config.weights.base = str(tiny_base)
        config.pool.width, config.pool.height = width, height
        config.train.batch_size = config.train.device_batch = PAIRS
        config.adapter.rank = 2
        return config

    return make


def build(config, mesh=None):
    return programs.build_program("train_policy", make_setup(config, mesh))


def make_setup(config, mesh=None):
    return programs.make_setup(typed(config), "train_policy", PAIRS, mesh or data_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def measured(small):
    """What one step takes, compiled for this machine."""
    # A program that another test has compiled tells nothing of its temporaries: that file only the compiler writes.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield measure(functools.partial(build, small()), jax.devices()[:1], CPU)
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def lowered(config):
    """The step's program before any compiler has seen it."""
    program = build(config)
    return program.function.lower(*program.arguments)


def with_other_numbers(config, *names):
    """The config with all floating-point numbers of these sections changed, those that are zero too."""
    for name in names:
        for field, value in config.get(name, {}).items():
            if isinstance(value, float):
                config[name][field] = 2 * value + 0.25
        if "warmup_steps" in config.get(name, {}):
            config[name].warmup_steps = 0
    return config


def flops_of(program):
    return total_flops(matrix_products(program.function.trace(*program.arguments).jaxpr.jaxpr, "cpu"))


@pytest.mark.parametrize("objective", objectives.names())
def test_numbers_of_objective_and_optimiser_are_arguments_of_the_step_and_not_constants_in_it(small, objective):
    one, other = small(), small()
    one.objective = other.objective = objective
    assert lowered(one).as_text() == lowered(with_other_numbers(other, "train", objective)).as_text()


def test_numbers_of_the_optimiser_are_arguments_of_the_fine_tuning_step(small):
    def text(config):
        config.finetune.batch_size = PAIRS
        setup = programs.make_setup(typed(config), "finetune_base", PAIRS, data_mesh(jax.devices()[:1]))
        program = programs.build_program("finetune_base", setup)
        return program.function.lower(*program.arguments).as_text()

    assert text(small()) == text(with_other_numbers(small(), "finetune"))


def test_one_compiled_step_follows_the_numbers_of_each_config(small):
    one, other = small(), small()
    one.dtype = other.dtype = "float32"
    other.dpo.update(beta=2 * one.dpo.beta, statistic_weight=0.0)
    other.train.learning_rate = 0.0
    model, mesh = load_base(typed(one)), data_mesh(jax.devices()[:1])
    initial_state, step = make_training(typed(one), model, mesh)
    _, step_of_other = make_training(typed(other), model, mesh)
    shapes = make_setup(one).latent_shape
    sides = np.random.default_rng(0).normal(size=(2, PAIRS, *shapes)).astype(np.float32)
    batch = {"winner_latents": sides[0], "loser_latents": sides[1], "tokens": model.tokenize(["a man", "a woman"])}
    scalars, moved = [], []
    for numbers in (step.keywords, step_of_other.keywords):
        state = initial_state()
        # As initialised, a LoRA changes nothing, and margins are zero.
        state["parameters"] = jax.tree.map(lambda leaf: leaf + 0.1, state["parameters"])
        before = jax.device_get(state["parameters"])
        state, found = step.func(state, model.parameters, batch, jax.random.key(0), **numbers)
        scalars.append(found)
        moved.append(not jax.tree.all(jax.tree.map(np.array_equal, before, state["parameters"])))
    # A factor of two is exact.
    assert scalars[1]["margin"] == 2 * scalars[0]["margin"] != 0
    assert scalars[0]["statistic_loss"] > 0 == scalars[1]["statistic_loss"]
    assert moved == [True, False]


def test_a_run_gives_the_step_the_latents_and_tokens_that_it_is_compiled_for_and_nothing_else(small, tmp_path):
    experiment, expected = typed(small()), build(small()).arguments[2]
    shape = expected["winner_latents"].shape[1:]
    latents = {f"{side}_latents": np.zeros(shape, np.float16) for side in ("winner", "loser")}
    scores = {"winner_score": np.float32(1), "loser_score": np.float32(0), "winner_index": 1, "loser_index": 0}
    write_pairs(tmp_path, [{"prompt": "a man", **latents, **scores}], shape)
    batch = training_batches(experiment, load_base(experiment), tmp_path)[0]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), expected
    )


# At 96x128 the first level has many scores, whose attention goes block by block.
@pytest.mark.parametrize(("width", "height"), [(48, 64), (96, 128)], ids=["few scores", "many scores"])
def test_no_product_of_a_bfloat16_step_has_an_operand_in_float32(small, width, height):
    # Before the compiler: that of CPUs has no products in bfloat16 and converts their operands.
    program = lowered(small(width=width, height=height)).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution)\(?.* : \((.*)\) -> ", program)
    assert len(products) > 100
    assert [operands for operands in products if "xf32>" in operands] == []


@pytest.mark.parametrize(("get_config", "dtype"), [(n20_sml, "float32"), (sft_winners, "bfloat16")])
def test_where_nothing_is_made_again_a_step_takes_what_its_method_asks_for_to_the_last_operation(
    small, get_config, dtype
):
    config = small(get_config)
    config.dtype, config.train.remat = dtype, "none"
    program = build(config)
    # So no frozen weight has a gradient, and nothing below the first layer of the LoRA.
    assert flops_of(program) == program.least_flops()


def test_in_bfloat16_it_also_takes_what_the_lora_costs_at_scale_zero_in_the_reference(small):
    config = small()
    config.train.remat = "none"
    program = build(config)
    base = make_setup(config).base
    state, parameters, batch, *_ = program.arguments
    rows, *shape = batch["winner_latents"].shape
    noisy, timesteps = (
        jax.ShapeDtypeStruct(*given) for given in (((2 * rows, *shape), "float32"), ((2 * rows,), "int32"))
    )

    def prediction_flops(adapters):
        arguments = parameters, noisy, timesteps, base.conditioning_shapes(2 * rows), adapters
        return total_flops(matrix_products(jax.make_jaxpr(base.prediction)(*arguments).jaxpr, "cpu"))

    extra = prediction_flops([(state["parameters"], 0.0)]) - prediction_flops([])
    assert flops_of(program) == program.least_flops() + extra


def test_what_is_made_again_is_less_than_what_policy_and_reference_share(measured):
    # Scores of attention are made again, a larger part of so small a model than of SD1.5; so is a LoRA at scale zero.
    assert measured.least_flops < measured.flops < 1.07 * measured.least_flops
    assert measured.compiled.flops < 1.05 * measured.least_flops


def test_what_the_lora_does_not_reach_is_computed_once_for_policy_and_reference(measured):
    # The first convolutions, and what cross-attention makes of the prompt.
    assert measured.compiled.flops < measured.flops


def test_the_state_is_written_where_it_was_read(measured):
    assert measured.compiled.reused_bytes == measured.compiled.donated_bytes == measured.state_bytes > 0


def test_between_layers_no_activation_is_written_in_another_order(measured):
    assert measured.compiled.transposes == {}


def test_the_largest_temporaries_are_named_with_what_makes_them(measured):
    sizes = [kind.bytes for kind in measured.compiled.temporaries]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < sum(sizes) < measured.temporary_bytes
    assert any(kind.source.startswith("models/attention.py:") for kind in measured.compiled.temporaries)


def test_the_statistic_loss_adds_less_than_a_thousandth_of_the_operations(small):
    def operations(name):
        config = small()
        model = make_setup(config).base
        state, base, batch, *_ = build(config).arguments
        batch = batch | {
            "noise": batch["winner_latents"],
            "timesteps": jax.ShapeDtypeStruct((PAIRS,), "int32"),
        }

        def loss(lora, base, batch):
            return policy_losses(DPO(), model, lora, base, batch)[name].mean()

        # Before the compiler, which merges and repeats small things as it pleases.
        gradient = jax.jit(jax.grad(loss)).lower(state["parameters"], base, batch)
        return gradient.cost_analysis()["flops"]

    alone, both = operations("dpo_loss"), operations("loss")
    assert alone < both < 1.001 * alone
