"""What samplers, objectives and LoRA files know of a model holds for one of another shape, from outside the package."""

import dataclasses
import functools
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import second_family
from second_family import SecondFamily, write_checkpoint

from hgdpo_jax import families
from hgdpo_jax.adapters import lora
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.batching import rows_of
from hgdpo_jax.errors import UserError
from hgdpo_jax.experiment.models import base_fingerprints, load_base
from hgdpo_jax.objectives import policy_losses
from hgdpo_jax.objectives.dpo import DPO
from hgdpo_jax.random_keys import training_key
from hgdpo_jax.sharding import shard_batch, training_mesh
from hgdpo_jax.training.accumulation import make_accumulating_step
from hgdpo_jax.training.optimizer import make_optimizer

NAME = "second_family:SecondFamily"
PROMPTS = ["a man with a beard", "a woman"]
SIZE = {"width": 32, "height": 48, "steps": 3, "guidance": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, toon_tokenizer):
    folder = tmp_path_factory.mktemp("second_base")
    write_checkpoint(folder, toon_tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return families.find(NAME).load(str(folder))


@pytest.fixture(scope="module")
def adapter(model):
    """A LoRA of the targets, and of one layer of each text encoder."""
    paths = [f"{name}.encoder.layers.0.mlp.fc1" for name in ("first", "second")]
    layers = model.lora_targets | {path: model.lora_layers[path] for path in paths}
    fresh = lora.initialize(jax.random.key(0), layers, rank=2)
    return jax.tree.map(lambda x: np.asarray(x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)), fresh)


def test_a_family_is_found_by_its_folder_or_by_module_and_class():
    assert families.find("stable_diffusion").__name__ == "StableDiffusion"
    assert families.find(NAME) is SecondFamily
    for name in ("stable_cascade", "model", "a.b"):
        with pytest.raises(UserError, match=f"weights.family is '{name}', expected a folder of hgdpo_jax/families"):
            families.find(name)


def test_an_experiment_loads_its_base_by_its_family_whose_code_counts(folder, monkeypatch):
    config = base_config()
    config.dtype, config.weights.base, config.weights.family = "float32", str(folder), NAME
    assert isinstance(load_base(typed(config)), SecondFamily)
    before = base_fingerprints(typed(config))
    source = inspect.getsource(second_family)
    monkeypatch.setattr(inspect, "getsource", lambda module: source + "# changed")
    # As a later process does: this one would go on with the code that it has.
    monkeypatch.delitem(sys.modules, "second_family")
    assert base_fingerprints(typed(config)) != before


def test_a_part_that_a_family_cannot_replace_is_refused(folder):
    config = base_config()
    config.weights.update(base=str(folder), family=NAME, vae="a/vae")
    with pytest.raises(UserError, match=f"config.weights.vae is set, but models of {NAME} cannot replace"):
        base_fingerprints(typed(config))
    config.weights.vae, config.schedule.timestep_spacing = "", "leading"
    with pytest.raises(UserError, match=f"config.schedule is set, but models of {NAME} cannot replace"):
        base_fingerprints(typed(config))


def test_images_are_drawn_for_both_parts_of_the_conditioning(model):
    conditioning = model.encode_prompts(PROMPTS)
    assert {name: rows.shape for name, rows in conditioning.items()} == {"states": (2, 77, 40), "pooled": (2, 24)}
    images = model.generate(PROMPTS, [0, 1], **SIZE)
    assert images.shape == (2, 48, 32, 3) and images.dtype == np.uint8
    start = np.stack(
        [np.asarray(jax.random.normal(jax.random.key(seed), model.latent_shape(32, 48))) for seed in (0, 1)]
    )
    negative = model.encode_prompts(["", ""])
    drawn = functools.partial(model.draw_latents, start, negative_conditioning=negative, steps=3, guidance=3.0)
    np.testing.assert_array_equal(model.decode_latents(drawn(conditioning)), images)
    for part in conditioning:
        other = conditioning | {part: conditioning[part][::-1]}
        assert np.abs(drawn(other) - drawn(conditioning)).max() > 1e-3


def test_one_prompt_has_its_conditioning_in_any_company(model):
    alone = model.encode_prompts(PROMPTS[1])
    both = model.encode_prompts(PROMPTS)
    latents, timesteps = np.ones((2, 4, 4, 8), np.float32), [10, 400]
    np.testing.assert_allclose(
        model.predict_noise(latents, timesteps, alone),
        model.predict_noise(latents, timesteps, rows_of(both, [1, 1])),
        rtol=1e-4,
        atol=1e-5,
    )


def test_pictures_are_encoded_and_decoded_and_a_gradient_passes_the_decoder(model):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 32, 3)).astype(np.uint8)
    latents = model.encode_images(pictures)
    assert latents.shape == (2, 12, 8, 8)
    assert model.decode_latents(latents).shape == pictures.shape
    gradient = jax.grad(lambda latents: model.decode(model.parameters, latents).mean())(jnp.asarray(latents))
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


def test_latent_normalization_gives_the_base_s_channel_means(model, adapter):
    base, normalized = (
        model.draw_latents(
            np.ones((2, *model.latent_shape(32, 48)), np.float32),
            *(model.encode_prompts(prompts, adapters=[(adapter, scale)]) for prompts in (PROMPTS, ["", ""])),
            [(adapter, jnp.float32(scale))],
            steps=2,
            guidance=5.0,
            latent_normalization=scale > 0,
        )
        for scale in (0.0, 1.0)
    )
    # The two text encoders' layers change the conditioning of both sides.
    assert base.shape == normalized.shape and np.isfinite(normalized).all()


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_lora_comes_back_from_its_file(model, adapter, tmp_path, format):
    model.lora_names.save_adapter(adapter, tmp_path / "a.safetensors", format)
    again = model.lora_names.load_adapter(tmp_path / "a.safetensors", model.lora_layers)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, adapter))


def test_a_merged_lora_draws_as_one_that_is_on(model, adapter, tmp_path):
    merged = model.with_adapter(adapter, 0.5)
    merged.save(tmp_path, "float32")
    on, off = (model.generate(PROMPTS, 0, adapters, **SIZE).astype(int) for adapters in ([(adapter, 0.5)], ()))
    assert np.abs(on - off).max() > 5
    assert np.abs(SecondFamily.load(str(tmp_path)).generate(PROMPTS, 0, **SIZE) - on).max() <= 1


def test_a_pair_step_trains_the_lora_from_log_two(model):
    mesh = training_mesh()
    random = np.random.default_rng(0)
    shape = (2 * mesh.size, *model.latent_shape(32, 48))
    latents = [random.normal(size=shape).astype(np.float32) for _ in range(2)]
    tokens = model.tokenize(PROMPTS * mesh.size)
    batch = {"winner_latents": latents[0], "loser_latents": latents[1], "tokens": tokens}
    optimizer = make_optimizer(learning_rate=1e-3, max_gradient_norm=1.0)
    pure = dataclasses.replace(model.with_remat("activations"), parameters={})
    objective = DPO(beta=100.0)
    losses = functools.partial(policy_losses, objective, pure)
    draw = functools.partial(objective.draw, timesteps=len(model.schedule.betas))
    lora_of = lora.initialize(jax.random.key(0), model.lora_targets, rank=2)
    state = {"parameters": lora_of, "optimizer": optimizer.init(lora_of)}
    step = make_accumulating_step(losses, optimizer, draw, 2, mesh)
    found = []
    for number in range(8):
        arguments = shard_batch((batch, training_key(0, number)), mesh)
        state, scalars = step(state, {name: model.parameters[name] for name in ("denoiser", "text")}, *arguments)
        found.append(float(scalars["loss"]))
    assert found[0] == pytest.approx(np.log(2), rel=1e-3)
    assert all(np.isfinite(found)) and min(found[4:]) < found[0]
