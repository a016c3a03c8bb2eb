import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.files import (
    read_checkpoint,
    read_folder,
    write_folder,
)
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
from hgdpo_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from hgdpo_jax.models.clip import CLIPTextConfig, CLIPTextTransformer
from hgdpo_jax.weights.conversion import from_tree, to_tree
from hgdpo_jax.weights.model_card import read_license, write_card
from hgdpo_jax.weights.tensor_files import save_tensors

COMPONENTS = ("unet", "vae", "text_encoder")


def templates(configs):
    """Shapes of the parameters of the three models that the configs describe."""
    unet = UNet(UNetConfig.from_dict(configs["unet"]))
    vae = Autoencoder(AutoencoderConfig.from_dict(configs["vae"]))
    text = CLIPTextTransformer(CLIPTextConfig.from_dict(configs["text_encoder"]))
    key, ids, images = jax.random.key(0), jnp.zeros((1, 77), jnp.int32), jnp.zeros((1, 16, 16, 3))
    states, latents = jnp.zeros((1, 77, 24)), jnp.zeros((1, 8, 8, 4))
    shapes = {
        "unet": jax.eval_shape(unet.init, key, latents, jnp.zeros(1, jnp.int32), states),
        "vae": jax.eval_shape(vae.init, key, images, latents),
        "text_encoder": jax.eval_shape(text.init, key, ids),
    }
    return {name: tree["params"] for name, tree in shapes.items()}


def test_a_folder_that_diffusers_wrote_fills_the_models(diffusers_folder):
    files = read_folder(diffusers_folder)
    assert files.configs["scheduler"]["beta_schedule"] == "scaled_linear"
    for name, template in templates(files.configs).items():
        tree = to_tree(files.tensors[name], template, f"{diffusers_folder}/{name}")
        back = from_tree(tree)
        assert all(np.array_equal(back[key], array) for key, array in files.tensors[name].items())


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_a_written_folder_loads_in_diffusers_with_the_same_weights(diffusers_folder, pipeline, tmp_path, storage):
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    write_folder(tmp_path / "written", read_folder(diffusers_folder), storage)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "written", safety_checker=None)
    for name in COMPONENTS:
        expected, found = getattr(pipeline, name).state_dict(), getattr(loaded, name).state_dict()
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            rounded = tensor.half().float() if storage == "float16" else tensor
            assert torch.equal(rounded, found[key]), key
    image = loaded("a red hat", num_inference_steps=2, output_type="np", height=16, width=16).images
    assert image.shape == (1, 16, 16, 3)


def test_a_written_folder_reads_as_what_was_written(diffusers_folder, tmp_path):
    files = read_folder(diffusers_folder)
    write_folder(tmp_path, files, "float32")
    again = read_folder(tmp_path)
    for name in COMPONENTS:
        assert again.tensors[name].keys() == files.tensors[name].keys()
        assert all(np.array_equal(again.tensors[name][key], files.tensors[name][key]) for key in files.tensors[name])


def test_half_precision_files_are_found_under_their_own_names(diffusers_folder, pipeline, tmp_path):
    shutil.copytree(diffusers_folder, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert read_folder(tmp_path / "copy").tensors["unet"].keys() == read_folder(diffusers_folder).tensors["unet"].keys()


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\ntags:\n- text-to-image\nlicense: creativeml-openrail-m\n---\nlicense: none\n", "creativeml-openrail-m"),
        ('---\nlicense: "CreativeML Open RAIL-M"\n---\n', "CreativeML Open RAIL-M"),
        ("---\ntags: []\n---\nlicense: none\n", None),
        ("---\nlicense: mit\n---\ncaf\xe9\n", "mit"),
        (None, None),
    ],
)
def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path, card, license):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode("latin-1"))
    assert read_license(tmp_path) == license


@pytest.mark.parametrize("license", ["creativeml-openrail-m", "CreativeML Open RAIL-M", None])
def test_a_written_card_names_the_base_alone_and_its_licence(tmp_path, license, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints/portraits").mkdir(parents=True)
    write_card(tmp_path, "checkpoints/portraits", license)
    assert read_license(tmp_path) == license
    assert 'base_model: "portraits"' in (tmp_path / "README.md").read_text()
    write_card(tmp_path, "studio/portraits@v2", license)
    assert 'base_model: "studio/portraits"' in (tmp_path / "README.md").read_text()


def test_the_licence_of_a_single_file_is_that_of_its_metadata(tmp_path):
    save_tensors(tmp_path / "base.safetensors", {"a": np.zeros(1)}, {"modelspec.license": "CreativeML Open RAIL-M"})
    assert read_license(tmp_path / "base.safetensors") == "CreativeML Open RAIL-M"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("unet/config.json", "unet/config.json does not exist"),
        ("scheduler/scheduler_config.json", "scheduler_config.json does not exist"),
        (
            "vae/diffusion_pytorch_model.safetensors",
            "vae holds no weights, expected one of diffusion_pytorch_model.safetensors, .*diffusion_pytorch_model.bin",
        ),
        (
            "text_encoder/model.safetensors",
            "text_encoder holds no weights, expected one of model.safetensors, .*pytorch_model.bin",
        ),
    ],
)
def test_a_folder_that_lacks_a_file_is_told_which(diffusers_folder, tmp_path, file, message):
    shutil.copytree(diffusers_folder, tmp_path / "copy")
    (tmp_path / "copy" / file).unlink()
    with pytest.raises(UserError, match=message) as error:
        read_folder(tmp_path / "copy")
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_another_model_are_refused(diffusers_folder):
    files = read_folder(diffusers_folder)
    other = dataclasses.replace(
        files, configs={**files.configs, "unet": {**files.configs["unet"], "layers_per_block": 2}}
    )
    with pytest.raises(UserError, match="folder/unet lacks"):
        to_tree(files.tensors["unet"], templates(other.configs)["unet"], "folder/unet")


def test_weights_in_shards_and_pickled_ones_are_those_of_the_whole_file(diffusers_folder, pipeline, tmp_path):
    torch = pytest.importorskip("torch")
    copy = shutil.copytree(diffusers_folder, tmp_path / "copy")
    shutil.rmtree(copy / "unet")
    pipeline.unet.save_pretrained(copy / "unet", max_shard_size="100KB")
    assert len(list((copy / "unet").glob("*.safetensors"))) > 1
    (copy / "text_encoder" / "model.safetensors").unlink()
    torch.save(pipeline.text_encoder.state_dict(), copy / "text_encoder" / "pytorch_model.bin")
    whole, found = read_folder(diffusers_folder), read_folder(copy)
    for name in COMPONENTS:
        assert found.tensors[name].keys() == whole.tensors[name].keys()
        assert all(np.array_equal(array, whole.tensors[name][key]) for key, array in found.tensors[name].items())


@pytest.mark.parametrize(
    ("name", "message"), [("text_encoder_2", "is an SDXL checkpoint"), ("transformer", "is an SD3 or Flux checkpoint")]
)
def test_folders_of_other_architectures_are_told_what_they_are(tmp_path, name, message):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=message) as error:
        read_folder(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def with_config(folder, **changes):
    """The folder with changes in its config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, r"is an inpainting checkpoint \(9 input channels, expected 4\)"),
        ({"cross_attention_dim": 1024}, r"is an SD2.x checkpoint \(text width 1024\)"),
    ],
)
def test_folders_with_another_unet_are_told_what_they_are(tiny_base, tmp_path, changes, message):
    with_config(shutil.copytree(tiny_base, tmp_path / "copy") / "unet", **changes)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(tmp_path / "copy")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("changes", [{"scaling_factor": 0.13025}, {"latent_channels": 16}])
def test_a_vae_of_other_latents_is_refused(tiny_base, tmp_path, changes):
    vae = with_config(shutil.copytree(tiny_base / "vae", tmp_path / "vae"), **changes)
    name = next(iter(changes))
    with pytest.raises(UserError, match=f"the VAE .*vae has {name} {changes[name]}, the checkpoint") as error:
        read_checkpoint(tiny_base, vae=str(vae))
    assert len(str(error.value).splitlines()) == 1
