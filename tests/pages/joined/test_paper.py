"""The paper's rows are experiments of ours, and its numbers lie as printed."""

from pathlib import Path

import pytest

from hgdpo_jax.pages.joined import paper

CONFIGS = Path(__file__).parents[3] / "configs"


def test_every_row_is_an_experiment_with_a_label():
    rows = {row for table in paper.TABLES.values() for row in table.rows} | {paper.HG_DPO}
    assert rows == set(paper.ROW_LABELS)
    assert all((CONFIGS / f"{row}.py").is_file() for row in rows)


def test_every_claim_is_about_rows_of_its_table():
    for ordering in (*paper.SCORE_ORDERINGS, *paper.COLOR_ORDERINGS):
        rows = set(paper.TABLES[ordering.table].rows) | ({paper.HG_DPO} if ordering.table == 1 else set())
        assert {row for pair in ordering.pairs for row in pair} <= rows, ordering


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
    for ordering in paper.SCORE_ORDERINGS:
        for better, worse in ordering.pairs:
            rows = paper.TABLES[ordering.table].rows
            if ordering.table == 1:
                assert rows[worse]["pick_score"] > 50
            elif rows[better] and rows[worse]:
                assert rows[better]["pick_score"] > rows[worse]["pick_score"]
    for ordering in paper.COLOR_ORDERINGS:
        for more, less in ordering.pairs:
            rows = paper.TABLES[2].rows
            assert all(rows[more][channel] > rows[less][channel] for channel in paper.CHANNELS)
