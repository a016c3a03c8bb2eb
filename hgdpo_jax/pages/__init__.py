"""Pages for people: the report of a run, the joined report of many, and the charts and pictures on them."""
