"""What LoRA files call the layers of Stable Diffusion 1.x."""

import re

from hgdpo_jax.weights.lora_files import LoraNames

UNET, TEXT_ENCODER = "unet.", "text_encoder."

_DIFFUSERS = re.compile(
    r"(?:unet\.|base_model\.model\.)?(?P<unet>(?:down_blocks|mid_block|up_blocks|time_embedding)\..+)"
    r"|(?:text_encoder|base_model\.model)\.(?:text_model\.)?(?P<text>encoder\.layers\..+)"
)
# Linear layers and 1x1 convolutions only.
_KOHYA = re.compile(
    r"lora_(?:(?P<unet>unet)|te_text_model)_(?P<layer>.+_"
    r"(?:proj_(?:in|out)|conv_shortcut|time_emb_proj|to_(?:[qkv]|out_0)|ff_net_(?:0_proj|2)|linear_[12]"
    r"|(?:[qkv]|out)_proj|mlp_fc[12]))"
)
# kohya's names have underscores for dots: all but those within these words.
_WORD = re.compile(
    r"((?:down|up|transformer)_blocks|mid_block|proj_(?:in|out)|conv_shortcut|time_emb_proj|time_embedding"
    r"|to_(?:[qkv]|out)|linear_[12]|self_attn|(?:[qkv]|out)_proj)|_"
)

# Until diffusers 0.20 the factors of a projection belonged to the attention, in a processor or beside the projections.
_PROJECTION_KEY = re.compile(r"\.to_(?P<projection>q|k|v|out)_lora\.(?P<part>down|up)\.weight$")

_XL_KEY = re.compile(r"text_encoder_2\.|lora_te[12]_")

_POINTWISE = re.compile(r"\.(proj_in|proj_out|conv_shortcut)$")


class StableDiffusionNames(LoraNames):
    """Names of diffusers, PEFT and kohya; paths of the text encoder begin with `text_encoder.`."""

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
        if match := _KOHYA.fullmatch(name):
            name = (UNET if match["unet"] else TEXT_ENCODER) + _WORD.sub(lambda word: word[1] or ".", match["layer"])
        if match := _DIFFUSERS.fullmatch(name):
            return match["unet"] or TEXT_ENCODER + match["text"]
        return None

    def is_pointwise(self, path: str) -> bool:
        return bool(_POINTWISE.search(path))

    def current(self, key: str) -> str:
        key = key.replace(".processor.", ".")
        if match := _PROJECTION_KEY.search(key):
            projection = match["projection"]
            of_unet = "to_out.0" if projection == "out" else f"to_{projection}"
            layer = f"{projection}_proj" if ".self_attn." in key else of_unet
            return f"{key[: match.start()]}.{layer}.lora.{match['part']}.weight"
        return key

    def foreign(self, key: str) -> str | None:
        return "a LoRA of Stable Diffusion XL" if _XL_KEY.match(key) else None
