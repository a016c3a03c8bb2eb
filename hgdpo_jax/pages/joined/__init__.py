"""The joined report: many runs side by side, and the tables and figures of the paper where they fill them."""
