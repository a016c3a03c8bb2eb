"""Measuring a LoRA while it is trained."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hgdpo_jax import hosts
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.unusable import Unusable, image_of
from hgdpo_jax.evaluation.color_shift import HSVMeans, hsv_means, shift_between
from hgdpo_jax.evaluation.win_rate import win_rate
from hgdpo_jax.experiment.drawing import drawing_of
from hgdpo_jax.experiment.prompts import validation_prompts
from hgdpo_jax.experiment.scoring import load_scorer
from hgdpo_jax.families.model import Model
from hgdpo_jax.pages.pictures import ImagePair, pair_grid
from hgdpo_jax.run_log import RunLog
from hgdpo_jax.scorers.scorer import Scorer
from hgdpo_jax.sharding import on_each_device

_GRID_IMAGES = 12


class Validation:
    """Win rate by the training scorer, colour shift and a grid of pictures on the validation prompts.

    `base` has the denoiser and the text encoder as they lie on the mesh.
    """

    def __init__(self, experiment: Experiment, model: Model, base: dict, mesh: Mesh, log: RunLog):
        self.experiment, self.model, self.base_parameters = experiment, model, base
        self.mesh, self.log = mesh, log
        self.scorer = load_scorer(experiment)
        if isinstance(self.scorer, Scorer):
            # On the host, from which each call takes it: training has better use for its 2 GB of a device.
            self.scorer = dataclasses.replace(self.scorer, parameters=jax.device_get(self.scorer.parameters))
        self.prompts = validation_prompts(experiment)
        self.base: tuple[dict[str, np.ndarray], Any] | None = None

    def draw(self, adapter: dict, scale: float) -> dict[str, np.ndarray]:
        """Images and their scores, with the adapter at a scale; scale 0 is the base, in the same compiled program."""
        pool = self.experiment.pool
        model = self.model.with_parameters(**on_each_device(self.base_parameters, self.mesh))
        drawing = drawing_of(self.experiment, model, [(adapter, jnp.float32(scale))])

        def draw_own(rows):
            prompts = [self.prompts[row] for row in rows]
            images, usable = drawing.images(prompts, np.zeros(len(prompts), np.int32))
            scores = self.scorer.score(images, prompts, pool.device_batch)
            return {"images": images, "scores": np.where(usable & np.isfinite(scores), scores, np.nan)}

        drawn = hosts.divide(draw_own, len(self.prompts))
        usable = np.isfinite(drawn["scores"])
        unusable = Unusable(pool.unusable_limit, len(self.prompts))
        unusable.add({f"the validation scores with the LoRA at {scale:g}": usable}, image_of(self.prompts, 0))
        unusable.require_rest(usable.sum())
        if hosts.is_first():
            unusable.warn()
        return drawn

    def __call__(self, state, step: int) -> dict[str, float]:
        """Measures the adapter after `step` steps."""
        adapter = on_each_device(state["parameters"], self.mesh)
        if self.base is None:
            drawn = self.draw(adapter, 0.0)
            self.base = drawn, _colors(drawn)
        (base, base_means), tuned = self.base, self.draw(adapter, self.experiment.adapter.scale)
        shift = shift_between(base_means, _colors(tuned))
        pairs = [
            ImagePair(
                prompt,
                [drawn["images"][i] for drawn in (base, tuned)],
                [{"score": float(drawn["scores"][i])} for drawn in (base, tuned)],
            )
            for i, prompt in enumerate(self.prompts[:_GRID_IMAGES])
        ]
        self.log.image(step, "validation", pair_grid(pairs, ("base", "tuned"), "score"))
        return {
            "validation_win_rate": win_rate(tuned["scores"][:, None], base["scores"][:, None]).rate,
            **{f"validation_{channel}_shift": change for channel, change in shift.percent.items()},
        }


def _colors(drawn: dict[str, np.ndarray]) -> HSVMeans:
    return hsv_means(drawn["images"][np.isfinite(drawn["scores"])])
