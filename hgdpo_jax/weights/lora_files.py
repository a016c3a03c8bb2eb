"""LoRA files: diffusers and PEFT names (diffusers, web interfaces) and kohya names (A1111, ComfyUI, Civitai).

Alpha is folded into the second factor when reading and equals the rank when writing: diffusers ignores alpha in one
format, and the commonest complaint about LoRA files is that it got lost.
"""

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
from hgdpo_jax.weights.folders import read_json
from hgdpo_jax.weights.tensor_files import load_tensors, save_tensors

FORMATS = ("diffusers", "kohya")

_KOHYA_PREFIX = "lora_unet_"
_PEFT_PREFIX = "base_model.model."
_PEFT_METADATA = "lora_adapter_metadata"

# File names in the folders that diffusers' save_lora_weights and PEFT's save_pretrained make.
_FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")

_DIFFUSERS_KEY = re.compile(
    r"(?:unet\.|base_model\.model\.)?(?P<module>(?:down_blocks|mid_block|up_blocks)\..+?)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora\.down\.weight|lora\.up\.weight|alpha)"
)
_KOHYA_KEY = re.compile(r"lora_unet_(?P<module>[^.]+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")
_PARTS = {
    "lora_A.weight": "down",
    "lora.down.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora.up.weight": "up",
    "lora_up.weight": "up",
    "alpha": "alpha",
}

_TEXT_ENCODER_KEY = re.compile(r"text_encoder(_2)?\.|lora_te[12]?_")

# The attention projections of every U-Net of this family, with the dots that kohya's names lost.
_KOHYA_MODULE = re.compile(
    r"(mid_block|(?:down|up)_blocks_\d+)_attentions_(\d+)_transformer_blocks_(\d+)_attn([12])_to_(q|k|v|out_0)"
)


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
        if format == "diffusers":
            tensors[f"unet.{module}.lora_A.weight"] = down
            tensors[f"unet.{module}.lora_B.weight"] = up
        else:
            name = _KOHYA_PREFIX + _flat(module)
            tensors[f"{name}.lora_down.weight"] = down
            # One alpha for all: diffusers mistakes several.
            tensors[f"{name}.lora_up.weight"] = up * np.float32(ranks[module] / rank)
            tensors[f"{name}.alpha"] = np.array(rank, np.float32)
    save_tensors(
        path, tensors, {"format": "pt"} | _format_metadata(ranks, rank, format) | _version() | dict(metadata or {})
    )


def load_adapter(
    path: epath.PathLike, targets: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """An adapter, in float32, from a diffusers, PEFT or kohya file, or from the folder that diffusers or PEFT made.

    With `targets` (from `lora.find_targets`) it is checked against them. Raises UserError where a key finds no place,
    a factor lacks its partner, or the file holds changes to the text encoder.
    """
    path = epath.Path(path)
    if path.is_dir():
        found = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise UserError(f"{path} holds no adapter, expected {' or '.join(_FOLDER_FILES)}")
        path = found[0]
    tensors, metadata = load_tensors(path)
    text = [key for key in tensors if _TEXT_ENCODER_KEY.match(key)]
    if text:
        raise UserError(f"{path} also changes the text encoder ({text[0]}): give an adapter of the U-Net alone")
    paths = {_flat(target): target for target in targets or ()}
    modules: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for key, array in tensors.items():
        module, part = _parse(key, paths)
        if module and part not in modules.get(module, {}):
            modules.setdefault(module, {})[part] = array
        else:
            unknown.append(key)
    if unknown or not modules:
        more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise UserError(
            f"{path} has {', '.join(sorted(unknown)[:10]) or 'no tensors'}{more}: expected pairs of LoRA factors of a "
            "U-Net's attention in diffusers, PEFT or kohya names"
        )
    peft_config = _peft_config(path, tensors, metadata)
    adapter = {module: _entry(path, module, modules[module], peft_config) for module in sorted(modules)}
    if targets is not None:
        lora.check(adapter, targets)
    return adapter


def _entry(path: epath.Path, module: str, parts: Mapping[str, np.ndarray], peft_config: Mapping[str, Any]):
    if "down" not in parts or "up" not in parts:
        raise UserError(f"{path} has only {' and '.join(parts)} for {module}: expected both factors")
    # Linear layers' factors are stored as 1x1 convolutions by some trainers.
    down, up = (
        (array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array).astype(np.float32)
        for array in (parts["down"], parts["up"])
    )
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise UserError(
            f"{path} has factors of shapes {list(down.shape)} and {list(up.shape)} for {module}, "
            "expected [rank, in] and [out, rank]"
        )
    rank = down.shape[0]
    alpha = float(parts["alpha"].reshape(())) if "alpha" in parts else _peft_alpha(peft_config, module, rank)
    return {"down": np.ascontiguousarray(down.T), "up": np.ascontiguousarray(up.T) * np.float32(alpha / rank)}


def _parse(key: str, paths: Mapping[str, str]) -> tuple[str | None, str]:
    """Module path and part of a key; no path where the key is not understood."""
    if match := _DIFFUSERS_KEY.fullmatch(key):
        return match["module"], _PARTS[match["part"]]
    if match := _KOHYA_KEY.fullmatch(key):
        return paths.get(match["module"]) or _with_dots(match["module"]), _PARTS[match["part"]]
    return None, ""


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _with_dots(module: str) -> str | None:
    if not (match := _KOHYA_MODULE.fullmatch(module)):
        return None
    block, attention, layer, which, projection = match.groups()
    block = re.sub(r"_(\d+)$", r".\1", block)
    projection = projection.replace("_", ".")
    return f"{block}.attentions.{attention}.transformer_blocks.{layer}.attn{which}.to_{projection}"


def _format_metadata(ranks: Mapping[str, int], rank: int, format: str) -> dict[str, str]:
    if format == "kohya":
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    exceptions = {module: value for module, value in sorted(ranks.items()) if value != rank}
    # Every entry that some version of diffusers asks for, none that an older PEFT does not know.
    config = {
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
        "target_modules": sorted(ranks),
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return {_PEFT_METADATA: json.dumps({f"unet.{name}": value for name, value in config.items()}, sort_keys=True)}


def _peft_config(path: epath.Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The PEFT config that a file carries (diffusers) or that lies beside it (PEFT); empty where there is none."""
    if any(key.startswith(_PEFT_PREFIX) for key in tensors):
        return read_json(path.parent / "adapter_config.json")
    if _PEFT_METADATA not in metadata:
        return {}
    try:
        config = json.loads(metadata[_PEFT_METADATA])
    except ValueError as error:
        raise UserError(f"{path} has {_PEFT_METADATA} that is not JSON ({error}): fetch or make it again") from error
    return {name.removeprefix("unet."): value for name, value in config.items()}


def _peft_alpha(config: Mapping[str, Any], module: str, rank: int) -> float:
    patterns = (config.get("alpha_pattern") or {}).items()
    alphas = [alpha for pattern, alpha in patterns if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    alpha = alphas[0] if alphas else config.get("lora_alpha", rank)
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _version() -> dict[str, str]:
    try:
        return {"hgdpo_jax_version": importlib.metadata.version("hgdpo_jax")}
    except importlib.metadata.PackageNotFoundError:
        # Run from a checkout that is not installed.
        return {}
