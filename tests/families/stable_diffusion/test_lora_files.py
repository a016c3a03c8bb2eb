import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion import load_adapter, save_adapter
from hgdpo_jax.families.stable_diffusion.model import targets_of
from hgdpo_jax.families.stable_diffusion.unet import UNet, UNetConfig
from hgdpo_jax.weights.conversion import from_tree, to_tree
from hgdpo_jax.weights.lora_files import adapter_fingerprint
from hgdpo_jax.weights.tensor_files import load_tensors

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUTPUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"


def random_adapter(targets, rank, seed=0):
    generator = np.random.default_rng(seed)
    return {
        path: {
            "down": generator.normal(size=(inputs, rank)).astype(np.float32) / rank,
            "up": generator.normal(size=(rank, outputs)).astype(np.float32),
        }
        for path, (inputs, outputs) in targets.items()
    }


@pytest.fixture
def adapter():
    return random_adapter({MODULE: (6, 5), OUTPUT: (3, 4)}, rank=2)


def same(found, expected):
    return found.keys() == expected.keys() and jax.tree.all(jax.tree.map(np.array_equal, found, dict(expected)))


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_what_is_saved_is_loaded(adapter, tmp_path, format):
    save_adapter(adapter, tmp_path / "a.safetensors", format)
    assert same(load_adapter(tmp_path / "a.safetensors"), adapter)
    assert same(load_adapter(tmp_path / "a.safetensors", {MODULE: (6, 5), OUTPUT: (3, 4)}), adapter)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_equal_adapters_give_equal_bytes(adapter, tmp_path, format):
    save_adapter(adapter, tmp_path / "a", format, {"base": "1", "config": "2"})
    save_adapter(dict(reversed(adapter.items())), tmp_path / "b", format, {"config": "2", "base": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_and_metadata_are_those_of_the_formats(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "a", "diffusers", {"base_fingerprint": "abc"})
    tensors, metadata = load_tensors(tmp_path / "a")
    assert set(tensors) == {f"unet.{path}.lora_{part}.weight" for path in adapter for part in "AB"}
    assert tensors[f"unet.{MODULE}.lora_A.weight"].shape == (2, 6)
    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 2
    assert metadata["base_fingerprint"] == "abc"
    save_adapter(adapter, tmp_path / "b", "kohya")
    tensors, metadata = load_tensors(tmp_path / "b")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert {f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"} < set(tensors)
    assert tensors[f"{name}.alpha"] == 2


def kohya_names(adapter, alpha):
    tensors = {}
    for path, entry in adapter.items():
        name = "lora_unet_" + path.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = np.ascontiguousarray(entry["down"].T)
        tensors[f"{name}.lora_up.weight"] = np.ascontiguousarray(entry["up"].T)
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


def old_names(adapter, prefix="unet."):
    parts = {"down": "lora.down", "up": "lora.up"}
    return {
        f"{prefix}{path}.{parts[part]}.weight": np.ascontiguousarray(array.T)
        for path, entry in adapter.items()
        for part, array in entry.items()
    }


def halved(adapter):
    return {path: {"down": entry["down"], "up": entry["up"] / 2} for path, entry in adapter.items()}


def test_alpha_is_folded_into_the_second_factor(adapter, tmp_path):
    safetensors.numpy.save_file(kohya_names(adapter, alpha=1.0), tmp_path / "a")
    assert same(load_adapter(tmp_path / "a"), halved(adapter))


def test_older_diffusers_names_are_read(adapter, tmp_path):
    safetensors.numpy.save_file(old_names(adapter), tmp_path / "a")
    assert same(load_adapter(tmp_path / "a"), adapter)
    safetensors.numpy.save_file(old_names(adapter, prefix=""), tmp_path / "b")
    assert same(load_adapter(tmp_path / "b"), adapter)


def processor_names(adapter, prefix="unet."):
    """Those of diffusers 0.12 to 0.19; the prefix came with 0.17."""
    return {
        key.replace(".to_out.0.", ".to_out.").replace(".to_", ".processor.to_").replace(".lora.", "_lora."): array
        for key, array in old_names(adapter, prefix).items()
    }


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_names_of_attention_processors_are_read(adapter, tmp_path, prefix):
    tensors = processor_names(adapter, prefix)
    assert f"{prefix}down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight" in tensors
    safetensors.numpy.save_file(tensors, tmp_path / "a")
    assert same(load_adapter(tmp_path / "a"), adapter)


def test_old_names_of_the_text_encoder_are_read(tmp_path):
    attention = "text_encoder.encoder.layers.3.self_attn"
    adapter = random_adapter({f"{attention}.{name}": (4, 4) for name in ("q_proj", "out_proj")}, rank=2)
    tensors = {
        f"text_encoder.text_model.encoder.layers.3.self_attn.to_{name}_lora.{part}.weight": np.ascontiguousarray(
            adapter[f"{attention}.{name}_proj"][part].T
        )
        for name in ("q", "out")
        for part in ("down", "up")
    }
    safetensors.numpy.save_file(tensors, tmp_path / "a")
    assert same(load_adapter(tmp_path / "a"), adapter)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.bin", "adapter_model.bin", "kohya.pt"])
def test_a_lora_that_pytorch_pickled_is_read(adapter, tmp_path, name):
    torch = pytest.importorskip("torch")
    tensors = {
        "pytorch_lora_weights.bin": processor_names(adapter, prefix=""),
        "adapter_model.bin": old_names(adapter, prefix="base_model.model."),
        "kohya.pt": kohya_names(adapter, alpha=2),
    }[name]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 2}))
    torch.save({key: torch.tensor(array) for key, array in tensors.items()}, tmp_path / name)
    assert same(load_adapter(tmp_path / name if name == "kohya.pt" else tmp_path), adapter)


def test_alpha_of_the_metadata_counts(adapter, tmp_path):
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1})}
    safetensors.numpy.save_file(old_names(adapter), tmp_path / "a", metadata)
    assert same(load_adapter(tmp_path / "a"), halved(adapter))


def test_a_peft_folder_is_read_with_the_alpha_of_its_config(adapter, tmp_path):
    tensors = {
        f"base_model.model.{path}.lora_{letter}.weight": np.ascontiguousarray(entry[part].T)
        for path, entry in adapter.items()
        for letter, part in (("A", "down"), ("B", "up"))
    }
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="adapter_config.json does not exist"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1, "alpha_pattern": {}}))
    assert same(load_adapter(tmp_path), halved(adapter))


def test_the_fingerprint_of_a_peft_lora_follows_its_config(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "adapter_model.safetensors")
    prints = {adapter_fingerprint(tmp_path / "adapter_model.safetensors")}
    assert prints == {adapter_fingerprint(tmp_path)}
    for alpha in (1, 2):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": alpha}))
        prints.add(adapter_fingerprint(tmp_path / "adapter_model.safetensors"))
    assert len(prints) == 3


def without(tensors, ending):
    return {key: array for key, array in tensors.items() if not key.endswith(ending)}


NUMBER = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors | {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": NUMBER},
            "is a LoRA of Stable Diffusion XL",
        ),
        (
            lambda tensors: tensors | {f"unet.{MODULE}.lora_C.weight": NUMBER},
            "to_q.lora_C.weight: expected pairs of LoRA",
        ),
        (lambda tensors: tensors | {"lora_unet_input_blocks_1_1.lora_up.weight": NUMBER}, "lora_unet_input_blocks_1_1"),
        (lambda tensors: tensors | {"lora_te_text_model_final.lora_up.weight": NUMBER}, "lora_te_text_model_final"),
        (lambda tensors: without(tensors, "to_q.lora.up.weight"), "has only down for .*attn1.to_q"),
        (lambda tensors: tensors | {f"unet.{MODULE}.lora.up.weight": NUMBER[:1, :1]}, r"shapes \[2, 6\] and \[1, 1\]"),
        (lambda tensors: {}, "no tensors"),
        (lambda tensors: tensors | {f"unet.{MODULE}.lora_magnitude_vector": NUMBER}, "is a DoRA: it has unet"),
        (lambda tensors: tensors | {"lora_unet_x.hada_w1_a": NUMBER}, "is a LoHa: it has"),
        (lambda tensors: tensors | {"bundle_emb.word.string_to_param.*": NUMBER}, "with textual inversions: it has"),
    ],
)
def test_no_key_is_dropped_silently(adapter, tmp_path, change, message):
    safetensors.numpy.save_file(change(old_names(adapter)), tmp_path / "a")
    with pytest.raises(UserError, match=message) as error:
        load_adapter(tmp_path / "a")
    assert len(str(error.value).splitlines()) == 1


def test_an_adapter_that_does_not_fit_the_targets_is_refused(adapter, tmp_path):
    save_adapter(adapter, tmp_path / "a", "kohya")
    with pytest.raises(UserError, match="the adapter changes mid_block"):
        load_adapter(tmp_path / "a", {MODULE: (6, 5)})


def test_an_unknown_format_is_refused(adapter, tmp_path):
    with pytest.raises(UserError, match="expected one of diffusers, kohya"):
        save_adapter(adapter, tmp_path / "a", "pickle")


@pytest.fixture(scope="module")
def model(pipeline):
    """The pipeline's U-Net in JAX: a function of an adapter and its scale, its LoRA targets, its parameters."""
    unet = UNet(UNetConfig.from_dict(dict(pipeline.unet.config)))
    generator = np.random.default_rng(3)
    latents = generator.normal(size=(2, 8, 8, 4)).astype(np.float32)
    states = generator.normal(size=(2, 7, 24)).astype(np.float32)
    timesteps = np.array([3, 700], np.int32)
    template = jax.eval_shape(unet.init, jax.random.key(0), latents, timesteps, states)["params"]
    tensors = {name: tensor.numpy().copy() for name, tensor in pipeline.unet.state_dict().items()}
    params = to_tree(tensors, template, "unet")

    @jax.jit
    def ours(adapter, scale):
        with lora.apply([(adapter, scale)]):
            return unet.apply({"params": params}, latents, timesteps, states)

    def theirs():
        torch = pytest.importorskip("torch")
        with torch.no_grad():
            sample = torch.tensor(latents).permute(0, 3, 1, 2)
            output = pipeline.unet(sample, torch.tensor(timesteps), torch.tensor(states)).sample
        return output.permute(0, 2, 3, 1).numpy()

    return ours, theirs, targets_of(params), params


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_every_layer_that_an_adapter_may_change_finds_its_name_again(model, tmp_path, format):
    layers = lora.find_layers(model[3])
    assert {"time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj"} < layers.keys()
    assert any(path.endswith("conv_shortcut") for path in layers)
    layers |= {
        "text_encoder.encoder.layers.11.self_attn.out_proj": (8, 8),
        "text_encoder.encoder.layers.0.mlp.fc1": (8, 9),
    }
    adapter = random_adapter(layers, rank=2)
    save_adapter(adapter, tmp_path / "a.safetensors", format)
    assert same(load_adapter(tmp_path / "a.safetensors", layers), adapter)


def compare(pipeline, model, adapter, folder, name):
    """Both readers of one file, at three scales."""
    ours, theirs, targets, _ = model
    loaded = jax.tree.map(jnp.asarray, load_adapter(folder / name, targets))
    pipeline.load_lora_weights(folder, weight_name=name, adapter_name="tested")
    try:
        plain = ours(loaded, 0.0)
        for scale in (0.0, 0.5, 1.0):
            pipeline.set_adapters("tested", scale)
            assert relative(ours(loaded, scale), theirs()) < 1e-4
            assert relative(ours(adapter, scale), theirs()) < 1e-4
        assert relative(ours(loaded, 1.0), plain) > 1e-2
    finally:
        pipeline.delete_adapters("tested")


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "two ranks"])
def test_diffusers_computes_with_our_files_what_we_do(pipeline, model, tmp_path, format, mixed):
    pytest.importorskip("peft")
    adapter = random_adapter(model[2], rank=4)
    if mixed:
        adapter[OUTPUT] = random_adapter({OUTPUT: model[2][OUTPUT]}, rank=2)[OUTPUT]
    save_adapter(adapter, tmp_path / "a.safetensors", format, {"base_fingerprint": "abc"})
    compare(pipeline, model, adapter, tmp_path, "a.safetensors")


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_weights_that_diffusers_fuses_from_our_file_equal_our_merged_ones(pipeline, model, tmp_path, format):
    pytest.importorskip("peft")
    params = model[3]
    adapter = random_adapter(model[2], rank=4)
    save_adapter(adapter, tmp_path / "a.safetensors", format)
    merged = from_tree(lora.merge(params, adapter, 0.5))
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors", adapter_name="tested")
    pipeline.fuse_lora(lora_scale=0.5)
    try:
        # Beside a module's own weights lie the factors, and its name tells that there are some.
        fused = {
            name.replace(".base_layer.", "."): tensor.numpy().copy()
            for name, tensor in pipeline.unet.state_dict().items()
            if "lora_" not in name
        }
    finally:
        pipeline.unfuse_lora()
        pipeline.delete_adapters("tested")
    assert fused.keys() == merged.keys()
    plain = from_tree(params)
    for name, array in merged.items():
        if name.removesuffix(".weight") in model[2]:
            assert relative(plain[name], array) > 1e-2
            # float32 products in another order.
            assert relative(fused[name], array) < 1e-6
        else:
            np.testing.assert_array_equal(fused[name], array)


def test_a_kohya_file_with_another_alpha_means_the_same_to_both(pipeline, model, tmp_path):
    pytest.importorskip("peft")
    adapter = random_adapter(model[2], rank=4)
    safetensors.numpy.save_file(kohya_names(adapter, alpha=2.0), tmp_path / "a.safetensors")
    compare(pipeline, model, halved(adapter), tmp_path, "a.safetensors")


def test_a_file_of_attention_processors_means_the_same_to_both(pipeline, model, tmp_path):
    pytest.importorskip("peft")
    adapter = random_adapter(model[2], rank=4)
    safetensors.numpy.save_file(processor_names(adapter), tmp_path / "a.safetensors")
    compare(pipeline, model, adapter, tmp_path, "a.safetensors")


def test_a_file_that_diffusers_wrote_means_the_same_to_both(pipeline, model, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    ours, theirs, targets, _ = model
    config = peft.LoraConfig(
        r=4, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    torch.manual_seed(0)
    pipeline.unet.add_adapter(config, "tested")
    try:
        pipeline.unet.save_lora_adapter(tmp_path, adapter_name="tested")
        adapter = load_adapter(tmp_path, targets)
        assert relative(ours(adapter, 1.0), theirs()) < 1e-4
        assert relative(ours(adapter, 1.0), ours(adapter, 0.0)) > 1e-2
    finally:
        pipeline.unet.delete_adapters("tested")


PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def bare_unet(pipeline, model):
    """The pipeline's U-Net, weights and all, without the modules that loading a LoRA leaves behind."""
    torch = pytest.importorskip("torch")
    unet = type(pipeline.unet).from_config(pipeline.unet.config)
    unet.load_state_dict({name: torch.tensor(np.asarray(array)) for name, array in from_tree(model[3]).items()})
    return unet


@pytest.fixture
def peft_model(bare_unet):
    """PEFT's wrapped copy of the U-Net for options of its config."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")

    def wrapped(**options):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=PROJECTIONS, **options)
        return peft.get_peft_model(copy.deepcopy(bare_unet), config)

    return wrapped


def train(model):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))


def save_converted(model, folder):
    """What PEFT documents for PiSSA: the factors' change since `initial`, as a LoRA of twice the rank."""
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder / "initial")
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model)
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(folder / "initial"))


def save_trained(model, folder):
    train(model)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "save"),
    [
        (
            {
                "use_rslora": True,
                "rank_pattern": {"attn1.to_q": 2, "^mid_block.*to_k": 3},
                "alpha_pattern": {"attn2.*": 7, "to_v": 5},
            },
            save_trained,
        ),
        ({"init_lora_weights": "orthogonal", "lora_dropout": 0.1, "fan_in_fan_out": True}, save_trained),
        ({"init_lora_weights": "pissa"}, save_converted),
    ],
    ids=["patterns", "orthogonal", "converted pissa"],
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to True")
@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights")
def test_a_folder_of_peft_means_the_same_to_both(bare_unet, model, peft_model, tmp_path, options, save):
    peft = pytest.importorskip("peft")
    _, _, targets, params = model
    save(peft_model(**options), tmp_path)
    merged = from_tree(lora.merge(params, load_adapter(tmp_path, targets), 1.0))
    theirs = peft.PeftModel.from_pretrained(bare_unet, tmp_path).merge_and_unload().state_dict()
    plain = from_tree(params)
    for module in targets:
        found, expected = merged[f"{module}.weight"], theirs[f"{module}.weight"].numpy()
        # float32 products in another order.
        assert relative(found, expected) < 1e-6
        assert relative(plain[f"{module}.weight"], expected) > 1e-2


CONVERT = "init_lora_weights .* path_initial_model_for_weight_conversion"
MERGE = "merge_and_unload"


@pytest.mark.parametrize("options", [{"init_lora_weights": "pissa_niter_2"}, {"init_lora_weights": "olora"}])
def test_factors_that_peft_took_from_the_base_are_refused(peft_model, tmp_path, options):
    save_trained(peft_model(**options), tmp_path)
    with pytest.raises(UserError, match=CONVERT):
        load_adapter(tmp_path)


@pytest.mark.parametrize("place", ["folder", "metadata"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init_lora_weights": "pissa"}, CONVERT),
        ({"init_lora_weights": "corda"}, CONVERT),
        ({"init_lora_weights": "lora_ga"}, CONVERT),
        ({"init_lora_weights": "loftq"}, MERGE),
        ({"init_lora_weights": "invented"}, MERGE),
        ({"use_dora": True}, "has use_dora True"),
        ({"lora_bias": True}, "has lora_bias True"),
        ({"bias": "lora_only"}, "has bias lora_only"),
        ({"modules_to_save": ["conv_in"]}, r"has modules_to_save \['conv_in'\]"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication"),
        ({"kasa_config": {"r": 1}}, "has kasa_config"),
        ({"use_an_invention": True}, "has use_an_invention True"),
        ({"peft_type": "LOHA"}, "of type LOHA, expected one of type LORA"),
        ({"r": 16}, "has rank 16 for .*, its factors 2"),
        ({"lora_alpha": "high"}, "has no usable rank and alpha"),
    ],
)
def test_what_is_more_than_its_factors_is_refused_by_name(adapter, tmp_path, place, config, message):
    config = {"r": 2, "lora_alpha": 1} | config
    if place == "folder":
        tensors = {f"base_model.model.{k.removeprefix('unet.')}": v for k, v in old_names(adapter).items()}
        safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    else:
        metadata = {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in config.items()})}
        safetensors.numpy.save_file(old_names(adapter), tmp_path / "pytorch_lora_weights.safetensors", metadata)
    with pytest.raises(UserError, match=message) as error:
        load_adapter(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("prefix", ["text_model.", ""], ids=["transformers 4", "transformers 5"])
def test_a_peft_folder_of_the_text_encoder_is_read(tmp_path, prefix):
    adapter = random_adapter({"text_encoder.encoder.layers.0.self_attn.q_proj": (6, 6)}, rank=2)
    (entry,) = adapter.values()
    name = f"base_model.model.{prefix}encoder.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.lora_{letter}.weight": np.ascontiguousarray(entry[part].T)
        for letter, part in (("A", "down"), ("B", "up"))
    }
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    assert same(load_adapter(tmp_path), halved(adapter))
