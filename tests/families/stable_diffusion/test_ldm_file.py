import jax
import numpy as np
import pytest
import safetensors.numpy
from single_file import PREFIXES, SD15, diffusers_names, make_models, single_file_of

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion.configs import PUBLISHED, autoencoder_config, text_config
from hgdpo_jax.families.stable_diffusion.files import read_checkpoint
from hgdpo_jax.families.stable_diffusion.ldm_file import convert_checkpoint, convert_vae
from hgdpo_jax.families.stable_diffusion.model import StableDiffusion, by_file
from hgdpo_jax.families.stable_diffusion.unet import UNetConfig
from hgdpo_jax.weights.conversion import from_tree

SMALL = {
    "unet": {"channels": (32, 64), "layers": 1, "attentive": (0,), "text_width": 64},
    "vae": {"channels": (32, 32, 64), "layers": 1},
    "text_encoder": {"vocab_size": 54, "width": 64, "layers": 2},
}


@pytest.fixture(scope="module")
def sd15():
    """Names and shapes of Stable Diffusion 1.5 in a single file; values are the names' numbers, and take no memory."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        models = make_models(**SD15)
        shapes = single_file_of(models, SD15)
    tensors = {
        name: np.broadcast_to(np.float32(i), tuple(tensor.shape)) for i, (name, tensor) in enumerate(shapes.items())
    }
    return models, tensors


@pytest.fixture(scope="module")
def small():
    """Models with random weights, and these as the tensors of a single file in half precision."""
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    models = make_models(**SMALL)
    return models, {name: tensor.half().numpy() for name, tensor in single_file_of(models, SMALL).items()}


def test_every_name_of_stable_diffusion_1_5_becomes_what_diffusers_makes_of_it(sd15):
    models, tensors = sd15
    _, converted = convert_checkpoint(tensors, "file")
    numbers = {name: i for i, name in enumerate(tensors)}
    for name, (part, key) in diffusers_names(SD15).items():
        assert converted[part][key].flat[0] == numbers[name], name
    for part, model in models.items():
        expected = {key.removeprefix("text_model.") for key in model.state_dict() if "position_ids" not in key}
        assert converted[part].keys() == expected
    assert sum(map(len, converted.values())) == len(tensors) == 686 + 248 + 196


def test_shapes_of_stable_diffusion_1_5_tell_its_configuration(sd15):
    configs, _ = convert_checkpoint(sd15[1], "file")
    assert UNetConfig.from_dict(configs["unet"]) == UNetConfig()
    assert autoencoder_config(configs["vae"]) == autoencoder_config(PUBLISHED["vae"])
    assert text_config(configs["text_encoder"]) == text_config(PUBLISHED["text_encoder"])


def unused():
    """What a file may hold besides the weights that count."""
    return {
        "model_ema.decay": np.array(0.9999, np.float32),
        "model_ema.diffusion_modelinput_blocks00weight": np.zeros((32, 4, 3, 3), np.float32),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "cond_stage_model.logit_scale": np.array(4.6, np.float32),
        "betas": np.zeros(1000, np.float32),
        "sqrt_one_minus_alphas_cumprod": np.zeros(1000, np.float32),
        "posterior_mean_coef1": np.zeros(1000, np.float32),
    }


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "small.safetensors"
    safetensors.numpy.save_file(small[1] | unused(), path)
    return path


def test_a_single_file_fills_the_models(small, small_file, tokenizer_folder):
    model = StableDiffusion.load(small_file, tokenizer=str(tokenizer_folder))
    for part, reference in small[0].items():
        found = from_tree(jax.device_get(by_file(model.parameters)[part]))
        expected = {key.removeprefix("text_model."): value for key, value in reference.state_dict().items()}
        assert found.keys() == {key for key in expected if "position_ids" not in key}
        assert all(np.array_equal(array, expected[key].half().float().numpy()) for key, array in found.items())
    np.testing.assert_allclose(model.schedule.betas[[0, -1]], [0.00085, 0.012], rtol=1e-6)
    assert (model.schedule.timestep_spacing, model.schedule.steps_offset) == ("linspace", 0)
    assert len(model.tokenize(["a hat"])[0]) == 77


@pytest.mark.parametrize("attention", [("q", "k", "v", "proj_out"), ("to_q", "to_k", "to_v", "to_out.0")])
def test_the_autoencoders_attention_is_understood_under_all_its_names(small, attention):
    tensors = dict(small[1])
    for old, new in zip(("q", "k", "v", "proj_out"), attention, strict=True):
        for name in [name for name in tensors if f".mid.attn_1.{old}." in name]:
            tensors[name.replace(f".{old}.", f".{new}.")] = tensors.pop(name)
    _, converted = convert_checkpoint(tensors, "file")
    assert converted["vae"].keys() == small[0]["vae"].state_dict().keys()


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.input_blocks.1.0.surprise.weight",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.1.norm1.weight",
        "first_stage_model.decoder.surprise.weight",
        "cond_stage_model.transformer.text_model.surprise.weight",
        "surprise",
    ],
)
def test_a_key_without_a_place_is_an_error(small, tmp_path, tokenizer_folder, name):
    path = tmp_path / "odd.safetensors"
    safetensors.numpy.save_file(small[1] | {name: np.zeros(32, np.float16)}, path)
    with pytest.raises(UserError, match=".".join(name.split(".")[-2:])) as error:
        StableDiffusion.load(path, tokenizer=str(tokenizer_folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_missing_tensor_is_named(small, tmp_path, tokenizer_folder):
    name = "model.diffusion_model.middle_block.1.norm.weight"
    safetensors.numpy.save_file({k: v for k, v in small[1].items() if k != name}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="the unet of .*x.safetensors lacks mid_block.attentions.0.norm.weight"):
        StableDiffusion.load(tmp_path / "x.safetensors", tokenizer=str(tokenizer_folder))


def test_two_tensors_in_one_place_are_refused(small):
    name = "first_stage_model.encoder.mid.attn_1.q.weight"
    double = small[1] | {name.replace(".q.", ".to_q."): small[1][name]}
    with pytest.raises(UserError, match="another tensor in the same place"):
        convert_checkpoint(double, "file")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight", "is a LoRA"),
        ("unet.mid_block.attentions.0.proj_in.lora_A.weight", "is a LoRA"),
        ("conditioner.embedders.1.model.ln_final.weight", "is an SDXL checkpoint"),
        ("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight", "is an SD3 checkpoint"),
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "is a Flux checkpoint"),
        ("cond_stage_model.model.ln_final.weight", "is an SD2.x checkpoint"),
        ("decoder.conv_in.weight", r"has no model.diffusion_model.\*"),
    ],
)
def test_other_files_are_told_what_they_are(name, message):
    with pytest.raises(UserError, match=f"given.safetensors {message}") as error:
        convert_checkpoint({name: np.zeros(1)}, "given.safetensors")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("input_blocks.0.0.weight", (32, 9, 3, 3), r"is an inpainting checkpoint \(9 input channels, expected 4\)"),
        (
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
            (64, 1024),
            r"is an SD2.x checkpoint \(text width 1024\)",
        ),
    ],
)
def test_shapes_of_other_models_are_told_what_they_are(small, tmp_path, name, shape, message):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(small[1] | {PREFIXES["unet"] + name: np.zeros(shape, np.float16)}, path)
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_text_encoder_whose_heads_no_shape_tells_is_refused(small):
    name = next(name for name in small[1] if name.endswith("encoder.layers.0.mlp.fc1.weight"))
    message = "x.ckpt has encoder.layers.* of width 32, expected a multiple of 64, .*give others as a diffusers folder"
    with pytest.raises(UserError, match=message):
        convert_checkpoint(small[1] | {name: np.zeros((128, 32), np.float16)}, "x.ckpt")


def test_a_single_file_without_tokenizer_asks_for_one(small_file, tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer: set config.weights.tokenizer to a folder"):
        read_checkpoint(small_file)
    with pytest.raises(UserError, match="holds no tokenizer, expected vocab.json"):
        read_checkpoint(small_file, tokenizer=str(tmp_path))


@pytest.mark.parametrize("names", ["checkpoint", "bare", "diffusers"])
def test_a_vae_in_one_file_replaces_the_checkpoints(small, small_file, tokenizer_folder, tmp_path, names):
    prefix = PREFIXES["vae"]
    vae = {name: 2 * array for name, array in small[1].items() if name.startswith(prefix)}
    expected = convert_vae(vae, "vae")[1]
    if names == "bare":
        vae = {name.removeprefix(prefix): array for name, array in vae.items()} | {"loss.logvar": np.zeros(1)}
    safetensors.numpy.save_file(expected if names == "diffusers" else vae, tmp_path / "vae.safetensors")
    files = read_checkpoint(small_file, str(tokenizer_folder), str(tmp_path / "vae.safetensors"))
    assert files.tensors["vae"].keys() == expected.keys() == small[0]["vae"].state_dict().keys()
    assert all(np.array_equal(array, expected[key]) for key, array in files.tensors["vae"].items())
    assert autoencoder_config(files.configs["vae"]).block_out_channels == (32, 32, 64)


def test_a_file_without_vae_needs_one(small, tokenizer_folder, tmp_path):
    bare, vae = tmp_path / "bare.safetensors", tmp_path / "vae.safetensors"
    prefix = PREFIXES["vae"]
    safetensors.numpy.save_file({k: v for k, v in small[1].items() if not k.startswith(prefix)}, bare)
    safetensors.numpy.save_file({k: v for k, v in small[1].items() if k.startswith(prefix)}, vae)
    with pytest.raises(UserError, match="bare.safetensors holds no VAE: set config.weights.vae"):
        read_checkpoint(bare, str(tokenizer_folder))
    assert read_checkpoint(bare, str(tokenizer_folder), str(vae)).tensors["vae"]


def test_a_tokenizer_of_another_vocabulary_is_refused(small_file, toon_tokenizer):
    with pytest.raises(UserError, match="has 600 words, the text encoder 54: give the one"):
        StableDiffusion.load(small_file, tokenizer=str(toon_tokenizer))


def test_a_pickled_file_is_the_same_checkpoint(small, small_file, tokenizer_folder, tmp_path):
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.save(
        {"state_dict": {key: torch.from_numpy(array) for key, array in small[1].items()}}, tmp_path / "small.ckpt"
    )
    expected, found = (
        read_checkpoint(path, str(tokenizer_folder)).tensors for path in (small_file, tmp_path / "small.ckpt")
    )
    for part, tensors in expected.items():
        assert tensors.keys() == found[part].keys()
        assert all(np.array_equal(array, found[part][key]) for key, array in tensors.items())
