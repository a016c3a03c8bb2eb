"""Settings that decide how an image is drawn, besides weights, prompt and noise."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Steps of DPM-Solver++, scale of classifier-free guidance, negative prompt, and size in pixels.

    The last `clip_skip` layers of the text encoders are skipped for prompts, but not for the negative prompt.
    """

    steps: int
    guidance: float
    negative_prompt: str
    clip_skip: int
    width: int
    height: int
