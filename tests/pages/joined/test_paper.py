"""The paper's rows are experiments of ours, and its numbers lie as printed."""

from pathlib import Path

import pytest

from hgdpo_jax.evaluation.color_shift import CHANNELS
from hgdpo_jax.pages.joined import paper

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_row_is_an_experiment_with_a_label():
    rows = {row for table in paper.TABLES.values() for row in table.rows} | {paper.HG_DPO}
    assert rows == set(paper.ROW_LABELS)
    assert all((CONFIGS / f"{row}.py").is_file() for row in rows)


def test_every_claim_is_about_rows_of_its_table():
    for number, table in paper.TABLES.items():
        rows = set(table.rows) | ({paper.HG_DPO} if number == 1 else set())
        assert table.claims
        for statement, pairs in table.claims.items():
            assert {row for pair in pairs for row in pair} <= rows, statement


def test_every_column_has_a_label():
    assert {column for table in paper.TABLES.values() for column in table.columns} == set(paper.COLUMN_LABELS)
    assert set(CHANNELS) <= set(paper.COLUMN_LABELS)


@pytest.mark.parametrize(
    ("table", "row", "column", "printed"),
    [
        (1, "n20_beta4x", "aesthetic", 46.89),
        (2, "n20_sml", "value", 1.05),
        (3, "n2", "pick_score", 66.10),
        (3, "n20_sml", "clip_score", 68.36),
        (6, "n20_50k", "pick_score", 85.88),
    ],
)
def test_numbers_are_those_printed(table, row, column, printed):
    assert paper.TABLES[table].rows[row][column] == printed


def test_the_paper_orders_its_own_numbers_as_it_claims():
    for number, table in paper.TABLES.items():
        # Table 1 has win rates over its rows.
        columns = [] if number == 1 else CHANNELS if number == 2 else ["pick_score"]
        for better, worse in [pair for pairs in table.claims.values() for pair in pairs]:
            if number == 1:
                assert table.rows[worse]["pick_score"] > 50
            elif table.rows[better] and table.rows[worse]:
                assert all(table.rows[better][column] > table.rows[worse][column] for column in columns)
