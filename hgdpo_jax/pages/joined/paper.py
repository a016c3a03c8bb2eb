"""What HG-DPO (arXiv 2405.20216) reports: its tables, whose rows are experiments in configs/, and its claims."""

import dataclasses
from collections.abc import Mapping

from hgdpo_jax.evaluation.color_shift import CHANNELS

HG_DPO = "n20_sml"

# By the name of the experiment.
ROW_LABELS = {
    "n2": "N-2",
    "n5": "N-5",
    "n10": "N-10",
    "n20": "N-20",
    "n20_l2": "N-20-L-2",
    "n20_l5": "N-20-L-5",
    "n20_l10": "N-20-L-10",
    "n20_2k": "N-20-2k",
    "n20_50k": "N-20-50k",
    "n20_beta4x": "N-20, beta x 4",
    "n20_beta20x": "N-20, beta x 20",
    "n20_lan": "N-20-LAN",
    "n20_sml": "N-20-SML (HG-DPO)",
    "sft_winners": "SFT on the winners",
}

# The tables' columns by the kind of score.
SCORE_COLUMNS = {
    "pick_score": "PickScore",
    "hps_v2": "HPS",
    "image_reward": "ImageReward",
    "aesthetic": "Aesthetic",
    "clip_score": "CLIP",
}


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of the paper: `rows` has the numbers printed for each experiment in per cent, {} where there are none."""

    title: str
    rows: Mapping[str, Mapping[str, float]]


def _by_score(*values: float) -> dict[str, float]:
    return dict(zip(SCORE_COLUMNS, values, strict=False))


def _by_channel(*values: float) -> dict[str, float]:
    return dict(zip(CHANNELS, values, strict=True))


# By their number. Rows of Table 1 whose pairs are other data sets than the model's own are not listed.
TABLES = {
    1: PaperTable(
        "Win rate of HG-DPO over other ways to tune",
        {
            "sft_winners": _by_score(74.58, 78.16, 70.06, 50.85, 67.23),
            "n20_beta4x": _by_score(76.27, 74.71, 70.62, 46.89, 63.84),
            "n20_beta20x": _by_score(81.36, 82.29, 75.14, 63.84, 66.10),
        },
    ),
    2: PaperTable(
        "Colour shift",
        {
            "n2": _by_channel(6.59, 4.50, 1.32),
            "n10": _by_channel(20.94, 5.54, 3.94),
            "n20": _by_channel(24.93, 12.52, 3.43),
            "n20_beta4x": _by_channel(17.62, 7.99, 3.01),
            "n20_beta20x": _by_channel(1.39, 2.86, 0.69),
            "n20_lan": _by_channel(0.20, 2.03, 0.61),
            "n20_sml": _by_channel(1.67, 0.74, 1.05),
        },
    ),
    3: PaperTable(
        "Win rate over the base",
        {
            "n2": _by_score(66.10, 67.63, 63.84, 55.37, 54.24),
            "n5": _by_score(81.92, 77.14, 66.67, 68.36, 72.32),
            "n10": _by_score(84.18, 84.57, 74.01, 75.14, 69.49),
            "n20": _by_score(88.70, 89.77, 76.84, 75.14, 74.01),
            "n20_lan": _by_score(89.27, 86.86, 76.84, 66.10, 72.88),
            "n20_sml": _by_score(85.31, 85.71, 79.10, 63.84, 68.36),
        },
    ),
    5: PaperTable(
        "Win rate over the base by the loser's rank",
        {"n20_l2": {}, "n20_l5": {}, "n20_l10": {}, "n20": _by_score(88.70, 89.77, 76.84, 75.14, 74.01)},
    ),
    6: PaperTable(
        "Win rate over the base by the size of the data set",
        {"n20_2k": _by_score(74.58), "n20_50k": _by_score(85.88), "n20": _by_score(88.70)},
    ),
}


@dataclasses.dataclass(frozen=True)
class Ordering:
    """A claim of a table: in each pair of `pairs` the first experiment has the higher score, or shifts colours more."""

    table: int
    statement: str
    pairs: tuple[tuple[str, str], ...]


SCORE_ORDERINGS = (
    Ordering(
        1, "HG-DPO is better than DPO with a larger beta", (("n20_sml", "n20_beta4x"), ("n20_sml", "n20_beta20x"))
    ),
    Ordering(1, "DPO on the pairs is better than SFT on their winners", (("n20_sml", "sft_winners"),)),
    Ordering(
        3,
        "A larger pool is better",
        (("n5", "n2"), ("n10", "n5"), ("n20", "n10"), ("n20", "n2")),
    ),
    Ordering(
        5,
        "A worse loser is better",
        (("n20_l5", "n20_l2"), ("n20_l10", "n20_l5"), ("n20", "n20_l10"), ("n20", "n20_l2")),
    ),
    Ordering(6, "More prompts are better", (("n20_50k", "n20_2k"), ("n20", "n20_50k"), ("n20", "n20_2k"))),
)
COLOR_ORDERINGS = (
    Ordering(2, "DPO alone shifts colours more than with statistic matching", (("n20", "n20_sml"),)),
    Ordering(2, "DPO alone shifts colours more than with latent normalisation", (("n20", "n20_lan"),)),
)
