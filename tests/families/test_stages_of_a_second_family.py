"""Every stage with a base of another shape, from a package of one's own."""

import functools

import jax
import numpy as np
import pytest
from PIL import Image
from second_family import SecondFamily, write_checkpoint

import hgdpo_jax as hg
from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.data.encoded_images import read_encoded
from hgdpo_jax.preflight import programs
from hgdpo_jax.preflight.arithmetic import matrix_products, total_flops
from hgdpo_jax.run_log import read_scalars
from hgdpo_jax.sharding import data_mesh


@pytest.fixture(scope="module")
def base(tmp_path_factory, toon_tokenizer):
    folder = tmp_path_factory.mktemp("second_base")
    write_checkpoint(folder, toon_tokenizer)
    return folder


@pytest.fixture
def of_second_family(base):
    """Gives a config this base."""

    def change(config):
        config.weights.family, config.weights.base = "second_family:SecondFamily", str(base)
        return config

    return change


@pytest.mark.slow
def test_the_whole_method_runs(of_second_family, tmp_path):
    outcome = hg.run(of_second_family(hg.load_config("toon_smoke")), workdir=tmp_path)
    assert set(outcome.summary["win_rate"]) == {"scorer", "judge", "oracle"}
    assert all("loss" in line for line in read_scalars(outcome.folders["train_policy"])[:1])
    layers = SecondFamily.without_weights().lora_layers
    adapters = [
        SecondFamily.lora_names.load_adapter(path, layers)
        for path in sorted(outcome.folders["export_adapter"].glob("*lora*"))
    ]
    assert len(adapters) == 2
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *adapters)


@pytest.mark.slow
def test_a_denoiser_is_fine_tuned_on_conditioning_of_several_parts(of_second_family, base, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    rows = ["file_name,text"]
    for color in ("red", "green", "blue", "white"):
        Image.new("RGB", (40, 60), color).save(images / f"{color}.png")
        rows.append(f"{color}.png,a portrait with a {color} background")
    (images / "metadata.csv").write_text("\n".join([*rows, ""]))
    config = of_second_family(hg.load_config("finetune_base"))
    config.dtype, config.finetune.images = "float32", str(images)
    config.pool.update(width=16, height=24, steps=2)
    config.finetune.update(batch_size=4, device_batch=2, steps=4, evaluate_every=4, checkpoint_every=4)
    folders = hg.run(config, workdir=tmp_path / "work").folders
    encoded, captions = read_encoded(folders["encode_images"])
    expected = SecondFamily.load(str(base)).encode_prompts(captions[2])
    assert encoded[2]["conditioning"].keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(encoded[2]["conditioning"][name], rows[0], rtol=1e-3, atol=2e-3)
    before, after = (SecondFamily.load(str(place)).parameters for place in (base, folders["finetune_base"] / "base"))
    assert not jax.tree.all(jax.tree.map(np.array_equal, before["denoiser"], after["denoiser"]))
    for role in ("text", "autoencoder"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), before[role], after[role])


@pytest.mark.parametrize("name", sorted(programs.BATCH_SETTINGS))
def test_preflight_counts_the_arithmetic_of_every_program(of_second_family, name):
    config = of_second_family(base_config())
    config.dtype = "float32"
    config.pool.update(width=48, height=64, steps=2)
    config.train.batch_size = config.finetune.batch_size = 4
    program = programs.build_program(name, programs.make_setup(typed(config), name, 2, data_mesh(jax.devices()[:1])))
    found = total_flops(matrix_products(program.function.trace(*program.arguments).jaxpr.jaxpr, "cpu"))
    assert found > (program.least_flops() if program.least_flops else 0) >= 0
