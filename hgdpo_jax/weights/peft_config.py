"""PEFT's config of a LoRA, from adapter_config.json or from the metadata of a diffusers file."""

import re
from collections.abc import Mapping
from typing import Any

from hgdpo_jax.errors import UserError

# Initialisations that leave the base's weights as they are. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ subtract from them.
_HARMLESS_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica")
_CONVERTIBLE_INITIALISATION = re.compile("pissa.*|olora|corda.*|lora_ga")

# Options with a value other than a number or a string that do not change what the factors add to a linear layer.
_HARMLESS_OPTIONS = {
    *("auto_mapping", "inference_mode", "runtime_config", "merge_weights", "ensure_weight_tying", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    # These do, and are read below.
    *("init_lora_weights", "use_rslora", "rank_pattern", "alpha_pattern"),
}

# PEFT's own values of what a config leaves out.
_DEFAULT_ALPHA = 8


def check(config: Mapping[str, Any], where: str) -> None:
    """Raises UserError, naming the option, unless the config describes a LoRA that consists of its factors alone.

    An option that this version does not know is refused where it is on, so that a later PEFT's variants are not read
    as plain LoRA.
    """
    if (kind := str(config.get("peft_type") or "LORA").upper()) != "LORA":
        raise UserError(f"{where} describes an adapter of type {kind}, expected one of type LORA")
    initialisation = config.get("init_lora_weights")
    if isinstance(initialisation, str) and initialisation.lower() not in _HARMLESS_INITIALISATIONS:
        advice = "merge it in PEFT with merge_and_unload and give the merged model as the base"
        if _CONVERTIBLE_INITIALISATION.fullmatch(initialisation.lower()):
            advice = "save it again in PEFT with save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER)"
        raise UserError(
            f"{where} has init_lora_weights {initialisation!r}, which changed the base's weights too, so that the "
            f"factors alone are not the change: {advice}"
        )
    options = {
        name: value
        for name, value in config.items()
        if name not in _HARMLESS_OPTIONS and (value is True or (isinstance(value, (list, dict)) and value))
    }
    if config.get("bias", "none") != "none":
        options["bias"] = config["bias"]
    if options:
        name, value = next(iter(sorted(options.items())))
        raise UserError(
            f"{where} has {name} {str(value)[:100]}, which is more than the factors of linear layers: give a plain "
            "LoRA, or merge it in PEFT with merge_and_unload and give the merged model as the base"
        )


def alpha(config: Mapping[str, Any], module: str, rank: int, where: str) -> float:
    """The alpha that makes `alpha / rank` PEFT's factor for a module, by its name in its model.

    Without a config it is the rank. Raises UserError where the config is of factors of another rank.
    """
    if not config:
        return rank
    try:
        expected = int(_of_pattern(config.get("rank_pattern"), module, config.get("r", rank)))
        found = float(_of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", _DEFAULT_ALPHA)))
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{where} has no usable rank and alpha for {module} ({error}): save the LoRA again") from error
    if expected != rank:
        raise UserError(f"{where} has rank {expected} for {module}, its factors {rank}: give the config of this file")
    return found * rank**0.5 if config.get("use_rslora") else found


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, from a dot on."""
    found = (value for pattern, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    return next(found, default)
