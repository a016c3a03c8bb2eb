"""What decides, beside weights, prompt and noise, how an image is drawn."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Steps of DPM-Solver++, scale of classifier-free guidance, what it leads away from, and the size in pixels.

    `clip_skip` last layers of the text encoder are skipped for prompts, none for the negative prompt.
    """

    steps: int
    guidance: float
    negative_prompt: str
    clip_skip: int
    width: int
    height: int
