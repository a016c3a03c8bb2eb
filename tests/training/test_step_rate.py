import time

from hgdpo_jax.training.step_rate import StepRate


def test_compiling_and_pauses_do_not_count(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = StepRate()
    now = 60.0  # The first step compiles.
    rate.step_done()
    assert rate.per_second() == 0.0
    now += 0.5
    rate.step_done()
    assert rate.per_second() == 2.0
    now += 30.0  # An evaluation.
    rate.resume()
    now += 0.5
    rate.step_done()
    assert rate.per_second() == 2.0


def test_the_rate_follows_the_last_steps(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rate = StepRate()
    for seconds in (1.0, *[2.0] * 30):
        now += seconds
        rate.step_done()
    assert rate.per_second() == 0.5
