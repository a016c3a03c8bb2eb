"""The settings of the stages that train the toon weights: further sections of the configs that run them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from hgdpo_jax.errors import UserError
from hgdpo_jax.settings import decisive, free, setting

if TYPE_CHECKING:
    # The plugin, and this module with it, is imported at each start.
    from hgdpo_jax.artifacts import StageRun
    from hgdpo_jax.base_config import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """All weights of one network by AdamW, with a learning rate that warms up and then falls to zero."""

    # The config's section.
    section: ClassVar[str]
    unit: ClassVar[str] = "portraits"

    steps: int
    # Portraits, or pairs of them, per step.
    batch_size: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    # Steps between checkpoints.
    save_every: int = free(200)

    @classmethod
    def of(cls, experiment: "Experiment") -> Self:
        """The settings of an experiment; raises UserError where its config has none."""
        if cls.section not in experiment.extra:
            raise UserError(
                f"the config has no section {cls.section}: run this stage by configs/toon_base.py or its like"
            )
        return experiment.extra[cls.section]

    @classmethod
    def decisive(cls, experiment: "Experiment") -> dict[str, Any]:
        """The settings that decide a stage's result, as a stage's `settings` returns them."""
        return {"seed": experiment.seed, **decisive(cls.of(experiment))}

    @classmethod
    def plan(cls, experiment: "Experiment", run: "StageRun") -> str:
        """The cost of a stage, as a stage's `plan` returns it."""
        options = cls.of(experiment)
        return f"{options.steps} steps of {options.batch_size} {cls.unit}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(Training):
    """The autoencoder on portraits alone."""

    section = "autoencoder"

    block_out_channels: tuple[int, ...] = (16, 32, 64)
    layers_per_block: int = 1
    # Groups of four channels at the first level: smaller ones normalise the colours' means away.
    norm_num_groups: int = 4
    images: int = 14_000
    batch_size: int = 16
    steps: int = 1800
    # Strong enough that latents are close to a standard normal and a small error of the U-Net stays small in the image:
    # with 1e-5, noise of a tenth of the latents' standard deviation made a face unrecognisable.
    divergence_weight: float = 2e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTraining(Training):
    """Contrastive training of a small CLIP on portraits from `first_portrait` on; sizes as in its config.json."""

    section = "clip"

    first_portrait: int
    portraits: int = 16_000
    captions_per_portrait: int = 3
    vocabulary_size: int = 1200
    projection_dim: int = 96
    text: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    )
    vision: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 8,
        }
    )
    batch_size: int = 64
    weight_decay: float = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetTraining(Training):
    """The U-Net on captioned portraits; its sizes as in its config.json."""

    section = "base_training"

    unet: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "in_channels": 4,
            "out_channels": 4,
            "sample_size": 16,
            "block_out_channels": (32, 64, 96),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            # 32 groups on 32 channels would erase every channel's mean.
            "norm_num_groups": 8,
        }
    )
    portraits: int = 20_000
    captions_per_portrait: int = 3
    batch_size: int = 32
    # Fewer than would be best, on purpose: preference tuning needs a model that can still improve.
    steps: int = 4000
    # Largest weight of an error at high noise, where the prompt decides what is drawn.
    noisy_weight_limit: float = 30.0
    # Share of captions replaced by the empty prompt.
    empty_captions: float = 0.1
    average_decay: float = 0.995
    # Steps between the weights that are kept: scorers learn from samples of weaker models.
    keep_every: int = 500
    save_every: int = free(250)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerTraining(Training):
    """A CLIP on pairs of portraits from `first_portrait` on, with one family of damage."""

    section = "scorer_training"
    unit = "pairs"

    # Steps of the base's training whose weights draw the worse samples.
    weaker_steps: tuple[int, ...] = (500, 1000)
    first_portrait: int
    # A family of faults, in hgdpo_jax/toon/damage.py.
    damage: str = setting(dataclasses.MISSING, among=("SCORER_DAMAGE", "JUDGE_DAMAGE"))
    portraits: int = 4000
    samples: int = 500
    batch_size: int = 48
    steps: int = 800
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    # Weight of CLIP's own loss beside the preference loss.
    contrastive_weight: float = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class OracleTraining(Training):
    """The classifier of attributes on portraits from `first_portrait` on."""

    section = "oracle"

    first_portrait: int = 300_000
    portraits: int = 6000
    batch_size: int = 64
    steps: int = 900
    weight_decay: float = 0.01


SECTIONS = {
    kind.section: kind for kind in (AutoencoderTraining, CLIPTraining, UNetTraining, ScorerTraining, OracleTraining)
}
