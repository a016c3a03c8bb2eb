import pytest
from runs_on_disk import write_many_runs


@pytest.fixture(scope="session")
def many_runs(tmp_path_factory):
    """Folders of runs that fill every table and figure of the paper, and one of a user's own."""
    return write_many_runs(tmp_path_factory.mktemp("workdir") / "runs")
