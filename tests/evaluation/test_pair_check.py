import dataclasses
import json

import numpy as np
import pytest

from hgdpo_jax.evaluation.pair_check import PairCheck, check_pairs

LABELS = {"judge": "judge", "oracle": "oracle"}


def test_ties_count_half_and_means_are_compared():
    check = check_pairs(
        {"scorer": np.array([3.0, 2.0]), "judge": np.array([1.0, 1.0]), "oracle": np.array([80.0, 90.0])},
        {"scorer": np.array([1.0, 1.0]), "judge": np.array([0.0, 1.0]), "oracle": np.array([60.0, 90.0])},
        LABELS,
    )
    assert (check.pairs, check.margin) == (2, 1.5)
    assert check.scores["judge"].win_rate.rate == 0.75
    assert check.scores["oracle"].difference == 10.0 and "scorer" not in check.scores


@pytest.mark.parametrize("names", [("scorer",), ("scorer", "judge"), ("scorer", "judge", "oracle")])
def test_a_check_comes_back_from_json_with_what_was_measured(names):
    check = check_pairs({name: np.ones(3) for name in names}, {name: np.zeros(3) for name in names}, LABELS)
    assert PairCheck.from_dict(json.loads(json.dumps(dataclasses.asdict(check)))) == check
    assert len(str(check).splitlines()) == len(names)
