"""Sums over an experiment, and how they are shown."""

import json

import pytest

from hgdpo_jax.preflight.compilation import Compiled, Measurement
from hgdpo_jax.preflight.experiment import Examined, totals
from hgdpo_jax.preflight.hlo import Temporary
from hgdpo_jax.preflight.report import as_json, as_table
from hgdpo_jax.preflight.targets import parse_target

GB = 10**9
TARGET = parse_target("a100-40gb:4")


def measurement(fits=True, peak=20 * GB, seconds=2.0):
    return Measurement(
        fits=fits,
        peak_bytes=peak,
        weight_bytes=2 * GB,
        state_bytes=GB,
        resident_bytes=GB,
        temporary_bytes=peak - 4 * GB,
        flops=5e14,
        bytes=1e12,
        roofline_seconds=seconds,
        compile_seconds=60.0,
        least_flops=4e14,
        compiled=Compiled(
            flops=4.2e14,
            float32_products={"models/attention.py:7 attn1/dot_general": 3},
            transposes={"bf16[8,40] attn2/transpose": 2},
            donated_bytes=GB,
            reused_bytes=GB if fits else GB // 4,
            temporaries=[Temporary("bf16[8,40]", 2, 3 * GB, "models/unet.py:1 ff/gelu")],
        )
        if peak
        else None,
    )


def examined(measured, **others):
    return Examined(**vars(measured), **others)


PROGRAMS = {
    "generate_pool": examined(measurement(), rows=8, setting="pool.device_batch", device_batch=8, largest_batch=12),
    "evaluate_policy": examined(measurement(), rows=8, setting="pool.device_batch", device_batch=8, largest_batch=9),
    "train_policy": examined(
        measurement(fits=False, peak=50 * GB, seconds=3.0), rows=16, setting="train.device_batch", device_batch=4
    ),
}
WORK = {
    ("generate_pool", "generate_pool"): 7200 * 8,
    ("train_policy", "train_policy"): 2400 * 16,
    ("train_policy", "generate_pool"): 600 * 8,
    ("score_pool", "score_pool"): 1000,
    ("evaluate_policy", "evaluate_policy"): 0,
}


def total(price=2.0):
    return totals(
        PROGRAMS,
        WORK,
        devices=4,
        efficiencies=(0.25, 0.5),
        price_per_hour=price,
        storage_bytes={"pool": 3 * GB, "pairs": GB},
    )


def test_hours_are_calls_times_the_roofline_over_the_efficiency():
    found = total()
    # 7,200 calls of 2 s; 2,400 of 3 s and 600 of 2 s.
    assert found["roofline_device_hours_of_stages"] == {
        "generate_pool": pytest.approx(4.0),
        "train_policy": pytest.approx(2.0 + 1 / 3),
    }
    assert found["device_hours"] == {"0.25": pytest.approx(4 * 19 / 3), "0.5": pytest.approx(2 * 19 / 3)}
    assert found["hours"]["0.5"] == pytest.approx(19 / 6)
    assert found["flops"] == pytest.approx((7200 + 2400 + 600) * 5e14)


def test_a_price_is_that_of_the_device_hours_and_absent_without_a_rate():
    assert total()["price"]["0.5"] == pytest.approx(2 * 2 * 19 / 3)
    assert total(price=0.0)["price"] is None


def test_storage_is_summed_and_work_that_is_not_known_is_named():
    assert total()["storage_bytes"] == {"pool": 3 * GB, "pairs": GB, "all": 4 * GB}
    assert total()["not_counted"] == ["evaluate_policy", "score_pool"]


def test_json_has_the_target_each_program_and_the_whole():
    found = json.loads(json.dumps(as_json(TARGET, PROGRAMS, total(), "small")))
    assert (found["target"], found["devices"]) == ("a100-40gb", 4)
    training = found["programs"]["train_policy"]
    assert (training["fits"], training["peak_bytes"]) == (False, 50 * GB)
    assert (training["flops"], training["roofline_seconds"]) == (5e14, 3.0)
    assert found["programs"]["generate_pool"]["largest_batch"] == 12
    assert found["total"]["price"]["0.25"] == pytest.approx(2 * 4 * 19 / 3)


def test_the_table_says_what_fits_what_it_takes_and_what_it_costs():
    table = as_table(as_json(TARGET, PROGRAMS, total(), "small"), TARGET)
    row = next(line.split() for line in table.splitlines() if line.startswith("generate_pool"))
    assert row[1:4] == ["8", "yes", "20.00"]
    assert any(line.split()[:4] == ["train_policy", "4", "NO", "50.00"] for line in table.splitlines())
    # Programs share the setting: the largest is the one with which both fit.
    assert "pool.device_batch=9" in table
    assert "price: 51 or 25" in table
    assert "storage: 4 GB (pool 3 GB, pairs 1 GB)" in table
    assert "not counted: evaluate_policy, score_pool" in table


def test_the_table_says_of_a_refused_program_that_its_memory_is_unknown():
    refused = {
        "train_policy": examined(measurement(fits=False, peak=0), rows=16, setting="train.device_batch", device_batch=4)
    }
    values = as_json(TARGET, refused, total(), "small")
    line = next(line for line in as_table(values, TARGET).splitlines() if line.startswith("train_policy"))
    assert line.split()[2:4] == ["NO", "?"]


def test_the_table_says_what_the_compiler_made_of_each_program():
    table = as_table(as_json(TARGET, PROGRAMS, total(), "small"), TARGET)
    expected = "420.0 TFLOP, 1.050 of the least for the method; 3 products in float32; 2 transpositions of whole"
    assert f"generate_pool: {expected} activations; 1 GB of its arguments reused\n" in table
    assert "train_policy: 420.0 TFLOP" in table
    assert "250 MB of its arguments reused, 750 MB NOT" in table
    assert "   3.00  2 x bf16[8,40]  models/unet.py:1 ff/gelu" in table


def test_the_table_has_nothing_to_say_of_a_refused_program_but_that_it_was():
    refused = {
        "train_policy": examined(measurement(fits=False, peak=0), rows=16, setting="train.device_batch", device_batch=4)
    }
    assert "train_policy: refused" in as_table(as_json(TARGET, refused, total(), "small"), TARGET)
