"""What the toon world adds to the names that a config may use."""

from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.plugins import Plugin
from hgdpo_jax.toon.settings import SECTIONS

WEIGHTS = epath.Path(__file__).parent / "weights"


def _prompts(split: str, count: int) -> list[str]:
    # At first use: it needs the packages that draw portraits.
    from hgdpo_jax.toon.captions import prompts

    if not count:
        raise UserError(
            f"prompts toon:{split} have no end, expected how many: set the count, such as "
            "config.prompts.train_count, above 0"
        )
    return prompts(split, count)


PLUGIN = Plugin(
    prompts=_prompts,
    weights={
        "toon": WEIGHTS / "base",
        "toon-scorer": WEIGHTS / "scorer",
        "toon-judge": WEIGHTS / "judge",
        "toon-oracle": WEIGHTS / "oracle",
    },
    scorers={"toon-oracle": "hgdpo_jax.toon.oracle:attributes_shown"},
    sections=SECTIONS,
    stages="hgdpo_jax.toon.stages",
    attribution=(
        "Toon portraits: remix of “ToonHead” (https://www.figma.com/community/file/1589627891082866389) by Johan "
        "Melin, licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); what was changed: "
        "hgdpo_jax/toon/ATTRIBUTION.md."
    ),
)
