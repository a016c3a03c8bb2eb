"""An experiment's real programs, compiled for this machine's CPU as if it were the accelerator."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest

from configs.finetune_base import get_config as finetune_base
from configs.n20_lan import get_config as n20_lan
from configs.n20_sml import get_config as n20_sml
from configs.sft_winners import get_config as sft_winners
from hgdpo_jax.base_config import typed
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.work import work
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.preflight import programs
from hgdpo_jax.preflight.__main__ import main
from hgdpo_jax.preflight.arithmetic import matrix_products, total_flops
from hgdpo_jax.preflight.targets import CHIPS
from hgdpo_jax.scorers.pick_score import PickScore
from hgdpo_jax.sharding import data_mesh
from hgdpo_jax.stages import preflight

CONFIGS = Path(__file__).parents[2] / "configs"
# As large as the target, but for the platform.
CPU = dataclasses.replace(CHIPS["a100-80gb"], platform="cpu")


def shrink(config, base, scorer):
    """The config with weights and pictures that a CPU compiles in seconds, for one device."""
    config.weights.base, config.weights.scorer = str(base), str(scorer)
    config.dtype = "float32"
    config.pool.width, config.pool.height, config.pool.steps, config.pool.device_batch = 48, 64, 2, 2
    config.scoring.device_batch = config.train.device_batch = config.finetune.device_batch = 2
    config.train.batch_size = config.finetune.batch_size = 4
    config.preflight.target = "a100-80gb:1"
    config.preflight.largest_batch = False
    return config


@pytest.fixture
def small(tiny_base, tiny_scorer):
    return functools.partial(shrink, base=tiny_base, scorer=tiny_scorer)


def measured(config, chip=CPU):
    return lambda name, batch: programs.measure_program(typed(config), name, batch, jax.devices()[:1], chip)


def build(config, name, device_batch):
    """A program for one device."""
    setup = programs.make_setup(typed(config), name, device_batch, data_mesh(jax.devices()[:1]))
    return programs.build_program(name, setup)


def flops(config, name, device_batch):
    """Operations of a program on one device, which is not compiled."""
    program = build(config, name, device_batch)
    return total_flops(matrix_products(program.function.trace(*program.arguments).jaxpr.jaxpr, "cpu"))


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_programs_are_compiled_and_reported(small):
    config = small(n20_sml())
    config.preflight.programs = ("select_pairs", "score_pool")
    values, table = preflight.examine(typed(config), measured(config))
    assert list(values["programs"]) == ["score_pool", "select_pairs"]
    for name, program in values["programs"].items():
        parts = (program[f"{part}_bytes"] for part in ("weight", "state", "resident", "temporary"))
        assert program["fits"]
        assert program["peak_bytes"] == sum(parts)
        assert min(program["temporary_bytes"], program["flops"], program["roofline_seconds"]) > 0
        assert f"\n{name} " in table
    assert "train_policy" in values["total"]["not_counted"]
    assert json.loads(json.dumps(values)) == values


def test_every_kind_of_scorer_has_its_program_and_a_function_of_ones_own_none(small, tiny_scorer):
    config = small(n20_sml())
    chosen = flops(config, "score_pool", 2)
    config.weights.scorer = f"clip_score:{tiny_scorer}"
    # The same towers, read with their weights instead of their config alone.
    assert flops(config, "score_pool", 2) == chosen
    config.weights.scorer = "os.path:basename"
    assert "score_pool" not in preflight.program_names(typed(config))


def test_what_a_stage_holds_is_an_argument_of_its_program_or_lies_beside_it(small, tiny_base, tiny_scorer):
    config, base, scorer = small(n20_sml()), StableDiffusion.load(str(tiny_base)), PickScore.load(str(tiny_scorer))
    sizes = {name: bytes_of(tree) for name, tree in base.parameters.items()} | {"scorer": bytes_of(scorer.parameters)}
    for name, arguments, beside in (
        ("generate_pool", ("denoiser",), ("autoencoder", "text")),
        ("score_pool", ("autoencoder", "scorer"), ()),
        ("select_pairs", ("autoencoder",), ()),
        # For its validation training keeps the decoder; its scorer lies on the host.
        ("train_policy", ("denoiser", "text"), ("autoencoder",)),
        ("evaluate_policy", ("denoiser",), ("autoencoder", "text")),
    ):
        program = build(config, name, 2)
        assert bytes_of(program.weights) == sum(sizes[part] for part in arguments)
        assert bytes_of(program.resident) == sum(sizes[part] for part in beside)


def test_what_needs_more_than_there_is_does_not_fit(small):
    config = small(n20_sml())
    enough = measured(config)("select_pairs", 2).peak_bytes
    chip = dataclasses.replace(CPU, memory_bytes=enough)
    assert measured(config, chip)("select_pairs", 2).fits
    assert not measured(config, chip)("select_pairs", 4).fits


def test_a_step_in_parts_takes_as_much_arithmetic_as_the_whole(small):
    config = small(n20_sml())
    in_parts = flops(config, "train_policy", 2)
    config.train.device_batch = 4
    assert flops(config, "train_policy", 4) == in_parts


def test_devices_share_a_step(small):
    config = small(n20_sml())
    meshes = [jax.sharding.AbstractMesh((count,), ("data",)) for count in (1, 2)]
    setups = [programs.make_setup(typed(config), "train_policy", 2, mesh) for mesh in meshes]
    assert [setup.parts for setup in setups] == [2, 1]


def test_learning_from_winners_alone_takes_less_than_half_of_learning_from_pairs(small):
    pairs, winners = (flops(small(config()), "train_policy", 2) for config in (n20_sml, sft_winners))
    assert 0.2 * pairs < winners < 0.5 * pairs


def test_latent_normalisation_doubles_the_drawing_of_the_evaluation(small):
    plain, normalised = (flops(small(config()), "evaluate_policy", 2) for config in (n20_sml, n20_lan))
    # The model beside it has no adapter.
    assert 1.9 * plain < normalised < 2 * plain


def test_drawing_takes_as_many_forwards_as_steps_and_guidance_ask_for(small):
    config = small(n20_sml())
    few = flops(config, "generate_pool", 2)
    config.pool.steps *= 3
    assert flops(config, "generate_pool", 2) == 3 * few


def test_fine_tuning_keeps_all_weights_in_its_state(small, tiny_base):
    config = small(finetune_base())
    assert preflight.program_names(typed(config)) == ["encode_images", "finetune_base"]
    unet = bytes_of(StableDiffusion.load(str(tiny_base)).parameters["denoiser"])
    assert bytes_of(build(config, "finetune_base", 2).state["parameters"]) == unet
    assert set(work(typed(config)).values()) == {config.finetune.steps * config.finetune.batch_size}


def test_the_work_of_the_paper_is_two_million_images_and_a_hundred_thousand_pairs():
    config = n20_sml()
    rows = work(typed(config))
    assert rows["generate_pool", "generate_pool"] == rows["score_pool", "score_pool"] == 2_000_000
    assert rows["select_pairs", "select_pairs"] == 200_000
    assert rows["train_policy", "train_policy"] == 100_000
    # 64 prompts by the base once and 25 times by the tuned model.
    assert rows["train_policy: validation", "generate_pool"] == 64 * 26


def test_without_any_number_of_prompts_the_setting_to_give_is_named():
    config = n20_sml()
    config.prompts.train_count = 0
    with pytest.raises(UserError, match="prompts.train_count"):
        preflight.check(typed(config))


def test_latents_of_the_sampler_need_no_program_for_the_pairs():
    config = n20_sml()
    config.pairs.latents = "sampled"
    assert "select_pairs" not in preflight.program_names(typed(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--target=a100-80:4",), "did you mean a100-80gb?"),
        (("--target=v5e:3",), "expected v5e:COUNT with 1, 4, 8"),
        (("--target=v5e",), "expected v5e:COUNT"),
        (("--config.preflight.programs=('generate',)",), "expected some of generate_pool, score_pool"),
        (("--config.preflight.efficiencies=(0.5, 2.0)",), "preflight.efficiencies is 2.0, expected 0.001 to 1"),
        (("--target=h100:32",), "expected a multiple of the 32 devices of h100:32"),
        (("--price_per_hour=-1",), "preflight.price_per_hour is -1.0, expected at least 0"),
        (("--price_per_hour=much",), "--help lists the flags"),
        (("--config.preflight.traget=h100:8",), "did you mean config.preflight.target?"),
        (("--plan",), "--help lists the flags"),
    ],
)
def test_a_mistake_costs_one_line(changes, message, capsys):
    assert main([f"--config={CONFIGS / 'n20_sml.py'}", *changes]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_help_shows_how_to_call_it(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--target=a100-80gb:4" in shown
    assert "a100-40gb, a100-80gb, h100, h200, l4, rtx-4090, v4, v5e, v5p, v6e" in shown
