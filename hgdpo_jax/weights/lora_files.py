"""LoRA files: diffusers and PEFT names (diffusers, web interfaces) and kohya names (A1111, ComfyUI, Civitai).

Alpha is folded into the second factor when reading and equals the rank when writing: diffusers ignores alpha in one
format, and the commonest complaint about LoRA files is that it got lost.
"""

import functools
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from hgdpo_jax.adapters import lora
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import checksum, expanded
from hgdpo_jax.weights import peft_config
from hgdpo_jax.weights.folders import PICKLED, read_json
from hgdpo_jax.weights.pickled_files import load_pickled
from hgdpo_jax.weights.tensor_files import OWN_METADATA, load_tensors, save_tensors

FORMATS = ("diffusers", "kohya")

# The files of an exported LoRA by their formats.
EXPORTED = {"diffusers": "hgdpo_lora.safetensors", "kohya": "hgdpo_lora_kohya.safetensors"}
_UNET = "unet."
_PEFT_PREFIX = "base_model.model."
_PEFT_METADATA = "lora_adapter_metadata"
_PEFT_CONFIG = "adapter_config.json"

# File names in the folders that diffusers' save_lora_weights and PEFT's save_pretrained make.
_FOLDER_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)

_DIFFUSERS_KEY = re.compile(
    r"(?:(?:unet\.|base_model\.model\.)?(?P<unet>(?:down_blocks|mid_block|up_blocks|time_embedding)\..+?)"
    r"|(?:text_encoder|base_model\.model)\.(?:text_model\.)?(?P<text>encoder\.layers\..+?))\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|alpha)"
)
_KOHYA_KEY = re.compile(r"(?P<module>lora_(?:unet|te)_[^.]+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")
_PARTS = {
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_linear_layer.down.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "lora_linear_layer.up.weight": "up",
    "lora_up.weight": "up",
    "alpha": "alpha",
}

# Until diffusers 0.20 the factors of a projection belonged to the attention, in a processor or beside the projections.
_PROJECTION_KEY = re.compile(r"\.to_(?P<projection>q|k|v|out)_lora\.(?P<part>down|up)\.weight$")
_UNET_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}

_XL_KEY = re.compile(r"text_encoder_2\.|lora_te[12]_")

# What keys without a place belong to, so that the refusal can name it.
_OTHER_KINDS = {
    re.compile(r"lora_magnitude_vector|dora_scale"): "a DoRA",
    re.compile(r"\.hada_"): "a LoHa",
    re.compile(r"\.lokr_"): "a LoKr",
    re.compile(r"\.(oft_|boft_|vera_|randlora_)|\.lora_E$"): "an adapter of another kind than LoRA",
    re.compile(r"lora_B\.bias$"): "a LoRA with biases (lora_bias)",
    re.compile(r"bundle_emb\."): "a LoRA with textual inversions",
    re.compile(r"custom_diffusion"): "a Custom Diffusion",
    re.compile(r"_conv\d?\.lora_|_conv_(in|out)\.lora_|lora_mid\."): "a LoRA of 3x3 convolutions (LoCon)",
    re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"): "a LyCORIS with whole layers",
}

# Convolutions of one pixel, whose factors other readers expect to be convolutions too.
_POINTWISE = re.compile(r"\.(proj_in|proj_out|conv_shortcut)$")


def save_adapter(
    adapter: lora.Adapter,
    path: epath.PathLike,
    format: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes an adapter as float32 safetensors; equal adapters and metadata give equal bytes.

    "diffusers" is read by `load_lora_weights`, "kohya" by the web interfaces and by diffusers too. `metadata` says
    where the adapter comes from, such as its base's and its settings' fingerprints; this project's version is added.
    """
    if format not in FORMATS:
        raise UserError(f"adapter format {format!r} is unknown, expected one of {', '.join(FORMATS)}")
    ranks = {module: int(entry["down"].shape[1]) for module, entry in adapter.items()}
    # Readers expect one rank; the others are exceptions to it.
    rank = Counter(ranks.values()).most_common(1)[0][0]
    tensors: dict[str, np.ndarray] = {}
    for module, entry in adapter.items():
        down, up = (np.asarray(entry[part], np.float32).T for part in ("down", "up"))
        if _POINTWISE.search(module):
            down, up = down[:, :, None, None], up[:, :, None, None]
        if format == "diffusers":
            name = _diffusers_name(module)
            tensors[f"{name}.lora_A.weight"] = down
            tensors[f"{name}.lora_B.weight"] = up
        else:
            name = _kohya_name(module)
            tensors[f"{name}.lora_down.weight"] = down
            # One alpha for all: diffusers mistakes several.
            tensors[f"{name}.lora_up.weight"] = up * np.float32(ranks[module] / rank)
            tensors[f"{name}.alpha"] = np.array(rank, np.float32)
    origin = _format_metadata(ranks, rank, format) | _version() | dict(metadata or {})
    save_tensors(expanded(path), tensors, {"format": "pt"} | origin)


def load_adapter(
    path: epath.PathLike, targets: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """An adapter, in float32, from a diffusers, PEFT or kohya file, or from the folder that diffusers or PEFT made.

    With `targets` (from `lora.find_layers`) it is checked against them. Raises UserError where a key finds no place, or
    a factor lacks its partner.
    """
    path = expanded(path)
    if path.is_dir():
        found = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no adapter, expected {' or '.join(_FOLDER_FILES)}")
        path = found[0]
    tensors, metadata = (load_pickled(path), {}) if path.suffix in PICKLED else load_tensors(path, foreign=True)
    if xl := [key for key in tensors if _XL_KEY.match(key)]:
        raise UserError(f"{path} is a LoRA of Stable Diffusion XL ({xl[0]}): give one of Stable Diffusion 1.x")
    configs = _peft_configs(path, tensors, metadata)
    modules: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for key, array in tensors.items():
        module, part = _parse(key)
        if module and part not in modules.get(module, {}):
            modules.setdefault(module, {})[part] = array
        else:
            unknown.append(key)
    if unknown or not modules:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        kind = next((f"is {kind}: it " for key, kind in _OTHER_KINDS.items() if any(map(key.search, unknown))), "")
        raise UserError(
            f"{path} {kind}has {', '.join(sorted(unknown)[:10]) or 'no tensors'}{more}: expected pairs of LoRA factors "
            "of linear layers of U-Net and text encoder, in diffusers, PEFT or kohya names"
        )
    adapter = {module: _entry(path, module, modules[module], configs) for module in sorted(modules)}
    if targets is not None:
        lora.check(adapter, targets)
    return adapter


def adapter_fingerprint(path: epath.PathLike) -> str:
    """Names what decides an adapter: the file's checksum, and that of PEFT's config where one lies beside it."""
    path = expanded(path)
    config = path.parent / _PEFT_CONFIG
    return " ".join(map(checksum, [path, config] if config.is_file() else [path]))


def _entry(path: epath.Path, module: str, parts: Mapping[str, np.ndarray], configs: Mapping[str, Mapping[str, Any]]):
    if "down" not in parts or "up" not in parts:
        raise UserError(f"{path} has only {' and '.join(parts)} for {module}: expected both factors")
    # Linear layers' factors are stored as 1x1 convolutions by some trainers.
    down, up = (
        (array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array).astype(np.float32)
        for array in (parts["down"], parts["up"])
    )
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.size:
        raise UserError(
            f"{path} has factors of shapes {list(down.shape)} and {list(up.shape)} for {module}, "
            "expected [rank, in] and [out, rank]"
        )
    rank = down.shape[0]
    if "alpha" in parts:
        alpha = float(parts["alpha"].reshape(()))
    else:
        component = _component(module)
        name = _diffusers_name(module).removeprefix(component)
        alpha = peft_config.alpha(configs.get(component, {}), name, rank, str(path))
    return {"down": np.ascontiguousarray(down.T), "up": np.ascontiguousarray(up.T) * np.float32(alpha / rank)}


def _parse(key: str) -> tuple[str | None, str]:
    """Module path and part of a key; no path where the key is not understood."""
    key = key.replace(".processor.", ".")
    if match := _PROJECTION_KEY.search(key):
        names = _TEXT_PROJECTIONS if ".self_attn." in key else _UNET_PROJECTIONS
        key = f"{key[: match.start()]}.{names[match['projection']]}.lora.{match['part']}.weight"
    if match := _DIFFUSERS_KEY.fullmatch(key):
        return match["unet"] or lora.TEXT_ENCODER + match["text"], _PARTS[match["part"]]
    if match := _KOHYA_KEY.fullmatch(key):
        return _kohya_paths().get(match["module"]), _PARTS[match["part"]]
    return None, ""


def _component(module: str) -> str:
    return lora.TEXT_ENCODER if module.startswith(lora.TEXT_ENCODER) else _UNET


def _diffusers_name(module: str) -> str:
    if module.startswith(lora.TEXT_ENCODER):
        return f"{lora.TEXT_ENCODER}text_model.{module.removeprefix(lora.TEXT_ENCODER)}"
    return _UNET + module


def _kohya_name(module: str) -> str:
    if module.startswith(lora.TEXT_ENCODER):
        module = module.removeprefix(lora.TEXT_ENCODER)
        return "lora_te_text_model_" + module.replace(".", "_")
    return "lora_unet_" + module.replace(".", "_")


@functools.cache
def _kohya_paths() -> dict[str, str]:
    """Paths of all linear layers of this family's models by their names in kohya files, where underscores are dots."""
    projections = [f"attn{i}.to_{name}" for i in (1, 2) for name in ("q", "k", "v", "out.0")]
    blocks = ["mid_block", *(f"{side}_blocks.{i}" for side in ("down", "up") for i in range(4))]
    unet = [
        f"{block}.attentions.{i}.{layer}"
        for block in blocks
        for i in range(4)
        for layer in (
            "proj_in",
            "proj_out",
            *(f"transformer_blocks.0.{name}" for name in (*projections, "ff.net.0.proj", "ff.net.2")),
        )
    ]
    resnet = ("time_emb_proj", "conv_shortcut")
    unet += [f"{block}.resnets.{i}.{layer}" for block in blocks for i in range(4) for layer in resnet]
    unet += ["time_embedding.linear_1", "time_embedding.linear_2"]
    layers = [*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]
    text = [f"{lora.TEXT_ENCODER}encoder.layers.{i}.{layer}" for i in range(32) for layer in layers]
    return {_kohya_name(path): path for path in unet + text}


def _format_metadata(ranks: Mapping[str, int], rank: int, format: str) -> dict[str, str]:
    if format == "kohya":
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    config: dict[str, Any] = {}
    for component in (_UNET, lora.TEXT_ENCODER):
        own = {
            name.removeprefix(component): value
            for module, value in sorted(ranks.items())
            if (name := _diffusers_name(module)).startswith(component)
        }
        if own:
            config |= {f"{component}{name}": value for name, value in _component_config(own, rank).items()}
    return {_PEFT_METADATA: json.dumps(config, sort_keys=True)}


def _component_config(ranks: Mapping[str, int], rank: int) -> dict[str, Any]:
    exceptions = {module: value for module, value in ranks.items() if value != rank}
    # Every entry that some version of diffusers asks for, none that an older PEFT does not know.
    return {
        "alpha_pattern": exceptions,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": exceptions,
        "target_modules": list(ranks),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _peft_configs(
    path: epath.Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """PEFT's config of each component: beside the file (PEFT), or in its metadata (diffusers).

    Raises UserError where one describes more than the factors.
    """
    components = (_UNET, lora.TEXT_ENCODER)
    if any(key.startswith(_PEFT_PREFIX) for key in tensors):
        # One model's, whichever it is.
        path = path.parent / _PEFT_CONFIG
        configs = dict.fromkeys(components, read_json(path))
    elif _PEFT_METADATA in metadata:
        try:
            content = dict(json.loads(metadata[_PEFT_METADATA]) or {})
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{path} has {_PEFT_METADATA} that is no JSON object ({error}): fetch or make it again"
            ) from error
        configs = {
            component: {k.removeprefix(component): v for k, v in content.items() if k.startswith(component)}
            for component in components
        }
        # A U-Net that is saved alone leaves its own name out.
        configs[_UNET] |= {name: value for name, value in content.items() if not name.startswith(components)}
    else:
        return {}
    for config in configs.values():
        peft_config.check(config, str(path))
    return configs


def _version() -> dict[str, str]:
    try:
        return {"hgdpo_jax_version": importlib.metadata.version("hgdpo_jax")}
    except importlib.metadata.PackageNotFoundError:
        # Run from a checkout that is not installed: the file is marked as this project's all the same.
        return OWN_METADATA
