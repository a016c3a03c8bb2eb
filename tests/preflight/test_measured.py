"""Efficiencies that were measured."""

import json

import pytest

from hgdpo_jax.preflight import measured
from hgdpo_jax.preflight.targets import CHIPS


def test_a_measured_device_has_its_lowest_and_highest_efficiency_and_others_what_is_assumed(tmp_path, monkeypatch):
    (tmp_path / measured.FILE).write_text(json.dumps({CHIPS["h100"].title: {"step": 0.4, "sampling": 0.55, "x": 0.5}}))
    monkeypatch.setattr(measured.resources, "files", lambda package: tmp_path)
    assert measured.efficiencies(CHIPS["h100"]) == (0.4, 0.55)
    assert measured.efficiencies(CHIPS["v5e"]) == measured.ASSUMED == pytest.approx((0.3, 0.5))
