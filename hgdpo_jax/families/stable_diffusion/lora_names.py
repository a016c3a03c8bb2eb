"""How LoRA files call the layers of Stable Diffusion 1.x."""

import functools
import re

from hgdpo_jax.weights.lora_files import LoraNames

UNET, TEXT_ENCODER = "unet.", "text_encoder."

_DIFFUSERS = re.compile(
    r"(?:unet\.|base_model\.model\.)?(?P<unet>(?:down_blocks|mid_block|up_blocks|time_embedding)\..+)"
    r"|(?:text_encoder|base_model\.model)\.(?:text_model\.)?(?P<text>encoder\.layers\..+)"
)

# Until diffusers 0.20 the factors of a projection belonged to the attention, in a processor or beside the projections.
_PROJECTION_KEY = re.compile(r"\.to_(?P<projection>q|k|v|out)_lora\.(?P<part>down|up)\.weight$")
_UNET_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_TEXT_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}

_XL_KEY = re.compile(r"text_encoder_2\.|lora_te[12]_")

_POINTWISE = re.compile(r"\.(proj_in|proj_out|conv_shortcut)$")


class StableDiffusionNames(LoraNames):
    """Those of diffusers, PEFT and kohya; paths of the text encoder begin with `text_encoder.`."""

    components = (UNET, TEXT_ENCODER)

    def to_diffusers(self, path: str) -> str:
        if path.startswith(TEXT_ENCODER):
            return f"{TEXT_ENCODER}text_model.{path.removeprefix(TEXT_ENCODER)}"
        return UNET + path

    def to_kohya(self, path: str) -> str:
        if path.startswith(TEXT_ENCODER):
            return "lora_te_text_model_" + path.removeprefix(TEXT_ENCODER).replace(".", "_")
        return "lora_unet_" + path.replace(".", "_")

    def to_path(self, name: str) -> str | None:
        if match := _DIFFUSERS.fullmatch(name):
            return match["unet"] or TEXT_ENCODER + match["text"]
        return self._kohya_paths.get(name)

    def is_pointwise(self, path: str) -> bool:
        return bool(_POINTWISE.search(path))

    def current(self, key: str) -> str:
        key = key.replace(".processor.", ".")
        if match := _PROJECTION_KEY.search(key):
            names = _TEXT_PROJECTIONS if ".self_attn." in key else _UNET_PROJECTIONS
            return f"{key[: match.start()]}.{names[match['projection']]}.lora.{match['part']}.weight"
        return key

    def foreign(self, key: str) -> str | None:
        return "a LoRA of Stable Diffusion XL" if _XL_KEY.match(key) else None

    @functools.cached_property
    def _kohya_paths(self) -> dict[str, str]:
        """Paths of all linear layers by their names in kohya files, where underscores are dots."""
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
        text = [f"{TEXT_ENCODER}encoder.layers.{i}.{layer}" for i in range(32) for layer in layers]
        return {self.to_kohya(path): path for path in unet + text}
