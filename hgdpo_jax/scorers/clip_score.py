"""CLIP score: how well an image shows what its prompt says (Hessel et al., 2021)."""

from hgdpo_jax.scorers.clip_scorer import CLIPScorer


class CLIPScore(CLIPScorer):
    """100 times the cosine of image and prompt, as torchmetrics and papers on text-to-image models report it.

    Negative cosines, which these set to 0, are kept: they still order images. The original paper has 2.5 for 100.
    """

    label = "CLIP score"

    def scale(self, parameters) -> float:
        return 100.0
