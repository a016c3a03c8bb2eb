"""What kind of weights a file or folder holds, to say where one belongs that stands in another's place."""

import contextlib
from collections.abc import Iterator, Mapping

from etils import epath

from hgdpo_jax.errors import UserError, naming
from hgdpo_jax.weights.folders import read_json
from hgdpo_jax.weights.lora_files import FOLDER_FILES, KEY
from hgdpo_jax.weights.sources import resolve_source
from hgdpo_jax.weights.tensor_files import load_tensors

LORA, CLIP, CHECKPOINT, VAE, UNET = "a LoRA", "a CLIP such as PickScore", "a whole checkpoint", "a VAE", "a U-Net alone"
# Where they belong.
_PLACES = {
    LORA: "name it in config.evaluate.models",
    CLIP: "name it in config.weights.scorer or config.evaluate.scorers",
    CHECKPOINT: "name it in config.weights.base",
    VAE: "name it in config.weights.vae",
    UNET: "name the folder with all parts of its checkpoint in config.weights.base",
}
_CLASSES = {"AutoencoderKL": VAE, "UNet2DConditionModel": UNET}
# By the beginnings of tensors' names, in this order.
_BEGINNINGS = {
    "vision_model.": CLIP,
    "decoder.": VAE,
    "down_blocks.": UNET,
}


def kind_of(path: epath.Path) -> str:
    """The kind of weights in a file or folder; "" where it is none of these, or pickled."""
    if path.is_dir():
        if (path / "model_index.json").is_file():
            return CHECKPOINT
        if any((path / name).is_file() for name in FOLDER_FILES):
            return LORA
        config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
        return CLIP if "vision_config" in config else _CLASSES.get(str(config.get("_class_name")), "")
    if path.suffix != ".safetensors":
        return ""
    names = list(load_tensors(path, foreign=True)[0])
    if any(map(KEY.fullmatch, names)):
        return LORA
    return next((kind for start, kind in _BEGINNINGS.items() if any(name.startswith(start) for name in names)), "")


@contextlib.contextmanager
def placed(sources: Mapping[str, tuple[str, str]]) -> Iterator[None]:
    """Where loading fails within it, names the setting whose source is at fault, and where a misplaced one belongs.

    `sources` are those of settings, each with the kind that is expected there, or "" for any.
    """
    try:
        yield
    except UserError as error:
        for setting, (source, expected) in sources.items():
            kind = _kind_of_source(source)
            if expected and kind and kind != expected:
                place = _PLACES[kind]
                raise UserError(f"{setting} has {source}, which is {kind}, expected {expected}: {place}") from error
        for setting, (source, _) in sources.items():
            if source and source in str(error):
                with naming(setting):
                    raise
        raise


def _kind_of_source(source: str) -> str:
    # What cannot be read is reported by the loading that failed.
    with contextlib.suppress(UserError, OSError):
        return kind_of(resolve_source(source, weights=())) if source else ""
    return ""
