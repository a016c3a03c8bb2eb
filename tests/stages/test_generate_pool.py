import importlib

import jax
import numpy as np
import pytest

from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.experiment.models import base_fingerprints, base_shapes, load_base
from hgdpo_jax.families.stable_diffusion.files import WEIGHTS
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion
from hgdpo_jax.files import write_json
from hgdpo_jax.weights import folders


@pytest.fixture
def config(tiny_base, tiny_scorer):
    """The paper's settings with tiny weights and few prompts."""
    config = base_config()
    config.dtype = "float32"
    config.weights.base, config.weights.scorer = str(tiny_base), str(tiny_scorer)
    for split in ("train", "validation", "test"):
        config.prompts[split] = f"toon:{split}"
        config.prompts[f"{split}_count"] = 2
    return config


@pytest.fixture
def vae(tiny_base, tmp_path):
    """Folder of the tiny base's VAE with other weights."""
    tensors = folders.read_weights(tiny_base / "vae", "diffusion_pytorch_model")
    doubled = {name: 2 * array for name, array in tensors.items()}
    folders.write_weights(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", doubled, "float32")
    write_json(tmp_path / "vae" / "config.json", folders.read_json(tiny_base / "vae" / "config.json"))
    return str(tmp_path / "vae")


@pytest.mark.parametrize("stage", ["generate_pool", "check_pairs", "train_policy", "sample_images", "evaluate_policy"])
def test_vae_and_tokenizer_count_where_the_base_counts(config, vae, tiny_base, stage):
    settings = importlib.import_module(f"hgdpo_jax.stages.{stage}").settings
    own = settings(typed(config))
    config.weights.vae = vae
    with_vae = settings(typed(config))
    config.weights.tokenizer = str(tiny_base / "tokenizer")
    assert own != with_vae != settings(typed(config))


def test_what_is_not_given_is_in_no_fingerprint(config, tiny_base):
    assert base_fingerprints(typed(config)) == {
        "weights.family": "stable_diffusion",
        "model.revision": StableDiffusion.revision,
        "weights.base": folders.content_fingerprint(tiny_base, WEIGHTS),
    }


def test_the_schedule_of_the_config_replaces_the_bases_wherever_that_is_read(config):
    own = base_fingerprints(typed(config))
    config.schedule.timestep_spacing = "trailing"
    for model in (load_base(typed(config)), base_shapes(typed(config))):
        assert model.schedule.timestep_spacing == "trailing"
    assert base_fingerprints(typed(config)) == own | {"schedule.timestep_spacing": "trailing"}


def test_the_vae_of_the_config_replaces_the_bases_and_nothing_else(config, vae):
    own = load_base(typed(config)).parameters
    config.weights.vae = vae
    replaced = load_base(typed(config)).parameters
    assert jax.tree.all(
        jax.tree.map(lambda a, b: np.array_equal(2 * a, b), own["autoencoder"], replaced["autoencoder"])
    )
    for part in ("denoiser", "text"):
        assert jax.tree.all(jax.tree.map(np.array_equal, own[part], replaced[part]))
