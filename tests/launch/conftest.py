import pytest
from launching import Place


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)
