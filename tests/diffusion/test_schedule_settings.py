import re

import pytest

from hgdpo_jax.diffusion import dpm_solver
from hgdpo_jax.diffusion.schedule import NoiseSchedule
from hgdpo_jax.diffusion.schedule_settings import UNCHANGED, ScheduleSettings
from hgdpo_jax.errors import UserError

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def schedule_of(config, **options):
    return NoiseSchedule.from_dict(ScheduleSettings(**options).applied_to(BETAS | config))


def test_what_is_empty_is_read_from_the_files():
    config = BETAS | VELOCITY | {"timestep_spacing": "trailing", "solver_order": 2}
    assert UNCHANGED.applied_to(config) == config
    assert UNCHANGED.given() == {}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        ({}, {"timestep_spacing": "leading", "steps_offset": 1}, "epsilon, leading spacing with offset 1"),
        ({"timestep_spacing": "leading", "steps_offset": 1}, {"steps_offset": 0}, "leading spacing with offset 0"),
        ({}, {"sigmas": "karras"}, "Karras sigmas"),
        ({"use_karras_sigmas": True}, {"sigmas": "timesteps", "timestep_spacing": "trailing"}, "trailing spacing"),
        ({}, {"prediction_type": "v_prediction", "terminal_snr": "zero"}, "zero terminal SNR, v_prediction"),
        (VELOCITY, {"terminal_snr": "nonzero"}, "0.012 in 1,000 steps, v_prediction"),
        ({"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction"}, "zero terminal SNR, v_prediction"),
    ],
)
def test_what_is_set_replaces_what_the_files_say(config, options, expected):
    assert expected in str(schedule_of(config, **options))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {},
            {"terminal_snr": "zero"},
            "set config.schedule.prediction_type='v_prediction' or config.schedule.terminal_snr='nonzero'",
        ),
        (VELOCITY, {"prediction_type": "epsilon"}, "or config.schedule.terminal_snr='nonzero'"),
        ({}, {"steps_offset": 1}, "schedule.steps_offset is 1, but the spacing 'linspace' has no offset: set it to -1"),
        ({"use_karras_sigmas": True}, {"timestep_spacing": "leading"}, "is 'leading', but Karras sigmas decide"),
        ({}, {"sigmas": "exponential"}, "schedule.sigmas is 'exponential', expected '' or 'timesteps' or 'karras'"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused_by_the_names_of_the_settings(config, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        schedule_of(config, **options)


def test_an_offset_that_leads_past_the_trained_steps_is_refused():
    schedule = schedule_of({"timestep_spacing": "leading"}, steps_offset=200)
    assert dpm_solver.timesteps(schedule, 4)[0] == 1000
    with pytest.raises(
        UserError, match="sampling starts at timestep 1140, expected at most 1000: lower config.schedule.st"
    ):
        dpm_solver.timesteps(schedule, 20)
