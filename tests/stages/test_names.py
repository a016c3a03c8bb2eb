"""Which stages there are, and what is suggested for a name that is not one of them."""

import pytest

from hgdpo_jax.base_config import Experiment
from hgdpo_jax.errors import UserError
from hgdpo_jax.stages import require_stage


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("train", "train_policy"),
        ("sample", "sample_images"),
        ("eval", "evaluate_policy"),
        ("pool", "generate_pool"),
        ("pairs", "select_pairs"),
        ("score", "score_pool"),
        ("export", "export_adapter"),
        ("Train-Policy", "train_policy"),
        ("train_unett", "train_unet"),
        ("trian_policy", "train_policy"),
    ],
)
def test_a_name_that_is_no_stage_suggests_that_of_the_method_before_a_plugin_s(typed, meant):
    with pytest.raises(UserError, match=f"{typed!r}, which is not a stage: did you mean {meant}\\?"):
        require_stage(typed, Experiment().stages)


def test_the_config_s_own_stages_are_suggested_first():
    with pytest.raises(UserError, match="did you mean train_clip"):
        require_stage("train", ("train_clip", "train_unet"))
