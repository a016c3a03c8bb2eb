"""Names of its layers in LoRA files."""

import functools

from hgdpo_jax.weights.lora_files import LoraNames


class SecondNames(LoraNames):
    components = ("denoiser.", "first.", "second.")

    def to_diffusers(self, path):
        return path if path.startswith(self.components[1:]) else f"denoiser.{path}"

    def to_kohya(self, path):
        return "lora_" + self.to_diffusers(path).replace(".", "_")

    def to_path(self, name):
        return self._paths.get(name)

    def is_pointwise(self, path):
        return path.endswith(("proj_in", "proj_out", "conv_shortcut"))

    @functools.cached_property
    def _paths(self):
        from second_family import SecondFamily

        layers = SecondFamily.without_weights().lora_layers
        return {name(path): path for path in layers for name in (self.to_diffusers, self.to_kohya)}
