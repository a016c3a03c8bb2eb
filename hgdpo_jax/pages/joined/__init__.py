"""The joined report: evaluations of many runs in the tables and figures of the paper."""
