from hgdpo_jax.base_config import base_config, typed
from hgdpo_jax.experiment.relevant_settings import relevant_settings


def test_settings_are_those_that_a_stage_of_the_experiment_reads_and_the_changed_ones_come_first():
    config = base_config()
    config.objective = "ipo"
    config.ipo.beta, config.dpo.beta, config.finetune.steps = 7.0, 8.0, 9
    changed, defaults = relevant_settings(typed(config))
    assert changed == {"objective": "ipo", "ipo.beta": 7.0}
    assert defaults["ipo.statistic_stride"] == 1 and defaults["train.seed"] == 0 and defaults["sample.seeds"] == 4
    assert not any(name.startswith(("dpo.", "finetune.", "preflight.", "sweep.")) for name in defaults)
    # Empty by default.
    assert "pairs.filter" not in defaults and "weights.vae" not in defaults


def test_an_evaluation_alone_has_no_settings_of_a_training():
    config = base_config()
    config.stages, config.train.steps, config.evaluate.seeds = ("evaluate_policy",), 3, 2
    changed, defaults = relevant_settings(typed(config))
    assert changed == {"stages": ("evaluate_policy",), "evaluate.seeds": 2}
    assert "adapter.scale" in defaults and not any(name.startswith(("train.", "pairs.", "dpo.")) for name in defaults)
