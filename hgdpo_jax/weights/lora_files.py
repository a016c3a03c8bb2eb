"""LoRA files: diffusers and PEFT names (diffusers, web interfaces) and kohya names (A1111, ComfyUI, Civitai).

Alpha is folded into the second factor when reading and equals the rank when writing: diffusers ignores alpha in one
format, and a lost alpha is the most common complaint about LoRA files.
"""

import abc
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
from hgdpo_jax.texts import some
from hgdpo_jax.weights import peft_config
from hgdpo_jax.weights.folders import PICKLED, read_json, remembered
from hgdpo_jax.weights.pickled_files import load_pickled
from hgdpo_jax.weights.tensor_files import OWN_METADATA, load_tensors, save_tensors

FORMATS = ("diffusers", "kohya")

# The files of an exported LoRA by their formats.
EXPORTED = {"diffusers": "hgdpo_lora.safetensors", "kohya": "hgdpo_lora_kohya.safetensors"}

_PEFT_PREFIX = "base_model.model."
_PEFT_METADATA = "lora_adapter_metadata"
_PEFT_CONFIG = "adapter_config.json"

# File names in the folders that diffusers' save_lora_weights and PEFT's save_pretrained make.
FOLDER_FILES = (
    "pytorch_lora_weights.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.bin",
    "adapter_model.bin",
)

# Patterns of unknown keys, and what a file with such keys is: the error message names it.
_OTHER_KINDS = {
    r"lora_magnitude_vector|dora_scale": "a DoRA",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.(oft_|boft_|vera_|randlora_)|\.lora_E$": "an adapter of another kind than LoRA",
    r"lora_B\.bias$": "a LoRA with biases (lora_bias)",
    r"bundle_emb\.": "a LoRA with textual inversions",
    r"custom_diffusion": "a Custom Diffusion",
    r"_conv\d?\.lora_|_conv_(in|out)\.lora_|lora_mid\.": "a LoRA of 3x3 convolutions (LoCon)",
    r"\.(diff|diff_b|w_norm|b_norm)$": "a LyCORIS with whole layers",
}

# Endings of factors' keys, in all formats.
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
KEY = re.compile(rf"(?P<layer>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")


class LoraNames(abc.ABC):
    """How files call the layers of a family's networks; the adapter's own paths are those of `adapters/lora.py`."""

    # What begins diffusers' names of each network's layers, as "unet."; the denoiser's first.
    components: tuple[str, ...]

    @abc.abstractmethod
    def to_diffusers(self, path: str) -> str:
        """diffusers' name of a layer, which begins with its component."""

    @abc.abstractmethod
    def to_kohya(self, path: str) -> str:
        """kohya's name of a layer."""

    @abc.abstractmethod
    def to_path(self, name: str) -> str | None:
        """Path of the layer that a file of any format calls `name`; None where there is none."""

    @abc.abstractmethod
    def is_pointwise(self, path: str) -> bool:
        """Whether a layer is a convolution of one pixel, whose factors other readers expect to be convolutions too."""

    def current(self, key: str) -> str:
        """A key as the family's files have it today."""
        return key

    def foreign(self, key: str) -> str | None:
        """What a key betrays the file to be, of another family; None otherwise."""
        return None

    def save_adapter(
        self,
        adapter: lora.Adapter,
        path: epath.PathLike,
        format: str = "diffusers",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Writes an adapter as float32 safetensors; equal adapters and metadata give equal bytes.

        "diffusers" is read by `load_lora_weights`, "kohya" by the web interfaces and by diffusers too. `metadata` names
        the adapter's origin, such as the fingerprints of its base and settings; this project's version is added.
        """
        if format not in FORMATS:
            raise UserError(f"adapter format {format!r} is unknown, expected one of {', '.join(FORMATS)}")
        ranks = {module: int(entry["down"].shape[1]) for module, entry in adapter.items()}
        # Readers expect one rank; the others are exceptions to it.
        rank = Counter(ranks.values()).most_common(1)[0][0]
        tensors: dict[str, np.ndarray] = {}
        for module, entry in adapter.items():
            down, up = (np.asarray(entry[part], np.float32).T for part in ("down", "up"))
            if self.is_pointwise(module):
                down, up = down[:, :, None, None], up[:, :, None, None]
            if format == "diffusers":
                name = self.to_diffusers(module)
                tensors[f"{name}.lora_A.weight"] = down
                tensors[f"{name}.lora_B.weight"] = up
            else:
                name = self.to_kohya(module)
                tensors[f"{name}.lora_down.weight"] = down
                # One alpha for all: diffusers mistakes several.
                tensors[f"{name}.lora_up.weight"] = up * np.float32(ranks[module] / rank)
                tensors[f"{name}.alpha"] = np.array(rank, np.float32)
        origin = self._format_metadata(ranks, rank, format) | _version() | dict(metadata or {})
        save_tensors(expanded(path), tensors, {"format": "pt"} | origin)

    def load_adapter(
        self, path: epath.PathLike, targets: Mapping[str, tuple[int, int]] | None = None
    ) -> dict[str, dict[str, np.ndarray]]:
        """An adapter, in float32, from a diffusers, PEFT or kohya file, or from the folder that diffusers or PEFT made.

        With `targets` (from `lora.find_layers`) it is checked against them. Raises UserError where a key finds no
        place, or a factor lacks its partner.
        """
        path = _file(path)
        tensors, metadata = (load_pickled(path), {}) if path.suffix in PICKLED else load_tensors(path, foreign=True)
        if foreign := [(kind, key) for key in tensors if (kind := self.foreign(key))]:
            raise UserError("{} is {} ({}): give one of this model's family".format(path, *foreign[0]))
        configs = self._peft_configs(path, tensors, metadata)
        modules: dict[str, dict[str, np.ndarray]] = {}
        unknown = []
        for key, array in tensors.items():
            match = KEY.fullmatch(self.current(key))
            module = match and self.to_path(match["layer"])
            if match and module and (part := _PARTS[match["part"]]) not in modules.get(module, {}):
                modules.setdefault(module, {})[part] = array
            else:
                unknown.append(key)
        if unknown or not modules:
            kinds = (kind for pattern, kind in _OTHER_KINDS.items() if any(re.search(pattern, key) for key in unknown))
            kind = next((f"is {kind}: it " for kind in kinds), "")
            raise UserError(
                f"{path} {kind}has {some(sorted(unknown), most=10) or 'no tensors'}: expected pairs of LoRA factors "
                "of linear layers of denoiser and text encoder, in diffusers, PEFT or kohya names"
            )
        adapter = {module: self._entry(path, module, modules[module], configs) for module in sorted(modules)}
        if targets is not None:
            lora.check(adapter, targets)
        return adapter

    def _entry(
        self,
        path: epath.Path,
        module: str,
        parts: Mapping[str, np.ndarray],
        configs: Mapping[str, Mapping[str, Any]],
    ):
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
            name = self.to_diffusers(module)
            component = next(component for component in self.components if name.startswith(component))
            alpha = peft_config.alpha(configs.get(component, {}), name.removeprefix(component), rank, str(path))
        return {"down": np.ascontiguousarray(down.T), "up": np.ascontiguousarray(up.T) * np.float32(alpha / rank)}

    def _format_metadata(self, ranks: Mapping[str, int], rank: int, format: str) -> dict[str, str]:
        if format == "kohya":
            return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
        names = {self.to_diffusers(module): value for module, value in sorted(ranks.items())}
        config: dict[str, Any] = {}
        for component in self.components:
            own = {name.removeprefix(component): names[name] for name in names if name.startswith(component)}
            if own:
                config |= {f"{component}{name}": value for name, value in _component_config(own, rank).items()}
        return {_PEFT_METADATA: json.dumps(config, sort_keys=True)}

    def _peft_configs(
        self, path: epath.Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """PEFT's config of each component: beside the file (PEFT), or in its metadata (diffusers).

        Raises UserError where one describes more than the factors.
        """
        if any(key.startswith(_PEFT_PREFIX) for key in tensors):
            # One model's, whichever it is.
            path = path.parent / _PEFT_CONFIG
            configs = dict.fromkeys(self.components, read_json(path))
        elif _PEFT_METADATA in metadata:
            try:
                content = dict(json.loads(metadata[_PEFT_METADATA]) or {})
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{path} has {_PEFT_METADATA} that is no JSON object ({error}): fetch or make it again"
                ) from error
            configs = {
                component: {k.removeprefix(component): v for k, v in content.items() if k.startswith(component)}
                for component in self.components
            }
            # A denoiser that is saved alone leaves its own name out.
            configs[self.components[0]] |= {k: v for k, v in content.items() if not k.startswith(self.components)}
        else:
            return {}
        for config in configs.values():
            peft_config.check(config, str(path))
        return configs


def adapter_fingerprint(path: epath.PathLike) -> str:
    """Names what decides an adapter: the file's checksum, and that of PEFT's config where one lies beside it."""
    path = _file(path)
    config = path.parent / _PEFT_CONFIG
    files = [path, config] if config.is_file() else [path]
    return " ".join(remembered(found := checksum(file), file, {file.name: found}) for file in files)


def _file(path: epath.PathLike) -> epath.Path:
    """The file of an adapter, itself or in its folder; raises UserError where a folder has none."""
    path = expanded(path)
    if not path.is_dir():
        return path
    found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
    if not found:
        raise UserError(f"{path} holds no adapter, expected {' or '.join(FOLDER_FILES)}")
    return found[0]


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


def _version() -> dict[str, str]:
    try:
        return {"hgdpo_jax_version": importlib.metadata.version("hgdpo_jax")}
    except importlib.metadata.PackageNotFoundError:
        # Run from a checkout that is not installed: the file is marked as this project's all the same.
        return OWN_METADATA
