"""Some images of a pool in the order of their scores, as pictures for people (HG-DPO, Fig. 6)."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.data.pool import Block, Parts, Pool
from hgdpo_jax.families.model import Model
from hgdpo_jax.files import write_bytes, write_json
from hgdpo_jax.pages.pictures import RANKED, webp_bytes

_RANKS = (1, 2, 5, 10, 20)
_PROMPTS, _HEIGHT = 6, 384


def write_ranked(
    experiment: Experiment,
    model: Model,
    pool: Pool,
    scores: Parts,
    kept: Parts | None,
    blocks: Sequence[Block],
    folder: epath.Path,
) -> None:
    """Writes pictures of the first prompts: their first, second, fifth, tenth, twentieth and last image.

    An image ranks among those that a pair is chosen from. Raises DamagedPartError where a part has to be made again.
    """
    size = experiment.pool.size
    rows: list[dict] = []
    for block in blocks:
        of_block = scores.read_block(block, size)
        allowed = np.isfinite(of_block) & (kept.read_block(block, size) if kept else True)
        chosen = np.flatnonzero(allowed.sum(axis=1) > 1)[: _PROMPTS - len(rows)]
        # A part has the latents of a whole block, of which few are needed.
        latents = np.stack([pool.latents.read(block, index)[chosen] for index in range(size)], axis=1)
        for row, of_row in zip(chosen, latents, strict=True):
            count = int(allowed[row].sum())
            ranks = sorted({*(rank for rank in _RANKS if rank < count), count})
            order = np.argsort(np.where(allowed[row], -of_block[row], np.inf), kind="stable")[np.array(ranks) - 1]
            images, _ = model.decode_latents_checked(of_row[order], experiment.pool.device_batch)
            names = [f"ranked/{len(rows)}-{rank}.webp" for rank in ranks]
            for name, image in zip(names, images, strict=True):
                write_bytes(folder / name, webp_bytes(image, _HEIGHT))
            shown = {"ranks": ranks, "scores": of_block[row, order].tolist(), "pictures": names}
            rows.append({"prompt": block.prompts[row], **shown})
        if len(rows) == _PROMPTS:
            break
    write_json(folder / RANKED, rows)
