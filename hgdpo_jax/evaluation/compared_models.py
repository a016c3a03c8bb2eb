"""What an evaluation compares, as a config names it.

base                            the base model
tuned                           with this experiment's LoRA, at adapter.scale; tuned@0.8 at another LoRA scale
loras/other.safetensors@0.5     with a LoRA from a file, or from a folder of diffusers or PEFT; at adapter.scale if no
                                scale is given
folder:renderings/other_model   images that already exist
tuned+lan                       with latent adaptive normalisation (HG-DPO, Eq. 7)
old=loras/other.safetensors     with a name of its own
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from hgdpo_jax.adapters.lora import LARGEST_SCALE
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import expanded, similar
from hgdpo_jax.texts import slug
from hgdpo_jax.weights.folders import PICKLED

BASE, TUNED, FOLDER = "base", "tuned", "folder:"
_ENDINGS = (".safetensors", *PICKLED)
_TEXT = re.compile(r"(?:(?P<name>\w+)=)?(?P<target>.+?)(?:@(?P<scale>\d*\.?\d+))?(?P<lan>\+lan)?")


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """One of the models: the base, where `adapter` and `folder` are empty.

    `adapter` is "tuned" for the experiment's own LoRA or a file, `folder` has images; `name` is for files and
    summaries, `label` for people.
    """

    text: str
    name: str
    label: str
    adapter: str = ""
    scale: float = 0.0
    latent_normalization: bool = False
    folder: str = ""

    @classmethod
    def parse(cls, text: str, scale: float, latent_normalization: bool) -> "ComparedModel":
        """Reads a text as above; `scale` and `latent_normalization` hold for a LoRA where the text does not say."""
        match = _TEXT.fullmatch(text)
        if not match:
            raise UserError(f"config.evaluate.models has {text!r}, expected base, tuned, a LoRA file or folder:PATH")
        target, lan = match["target"], bool(match["lan"])
        stem = target.removeprefix(FOLDER).rstrip("/").rpartition("/")[2]
        if target == BASE or target.startswith(FOLDER):
            if match["scale"] or lan:
                raise UserError(f"config.evaluate.models has {text!r}: only a LoRA has a scale or +lan, remove them")
            name = match["name"] or slug(stem, "_")
            folder = str(expanded(target.removeprefix(FOLDER))) if target.startswith(FOLDER) else ""
            return cls(text, name, match["name"] or stem, folder=folder)
        if target != TUNED and not target.endswith(_ENDINGS) and not expanded(target).is_dir():
            near = next(iter(difflib.get_close_matches(target, (BASE, TUNED), 1)), "") or similar(target)
            hint = f" Did you mean {near}?" if near else ""
            raise UserError(
                f"config.evaluate.models has {text!r}, expected base, tuned, a LoRA's file ({', '.join(_ENDINGS)}) or "
                f"folder, or folder:PATH for images.{hint}".rstrip(".")
            )
        scale = float(match["scale"] or scale)
        if scale > LARGEST_SCALE:
            raise UserError(
                f"config.evaluate.models has {text!r}, expected a LoRA scale of 0 to {LARGEST_SCALE:g} behind the @"
            )
        stem = re.sub(r"\.\w+$", "", stem)
        given = f"@{match['scale']}" if match["scale"] else ""
        lan = lan or latent_normalization
        name = match["name"] or slug(f"{stem}{given}{match['lan'] or ''}", "_")
        label = match["name"] or f"{'LoRA' if target == TUNED else stem} at {scale:g}{', LAN' if lan else ''}"
        return cls(text, name, label, adapter=str(expanded(target)), scale=scale, latent_normalization=lan)


def compared_models(texts: Sequence[str], scale: float, latent_normalization: bool) -> list[ComparedModel]:
    """The models of a config; raises UserError where there are less than two, or two share a name."""
    models = [ComparedModel.parse(text, scale, latent_normalization) for text in texts]
    if len(models) < 2:
        raise UserError(f"config.evaluate.models is {tuple(texts)}, expected at least two, such as ('base', 'tuned')")
    names = [model.name for model in models]
    if twice := [model.text for model in models if names.count(model.name) > 1]:
        raise UserError(
            f"config.evaluate.models has {' and '.join(twice)} under one name: put NAME= before one of them"
        )
    return models
