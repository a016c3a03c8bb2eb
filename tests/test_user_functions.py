import importlib
import sys

import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.user_functions import load_function


def test_a_file_that_changed_since_it_was_imported_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_function.py"
    file.write_text("def score(images, prompts):\n    return 1\n")
    function, fingerprint = load_function("edited_function:score", "weights.scorer")
    assert load_function("edited_function:score", "weights.scorer") == (function, fingerprint)
    # The new code would have the new fingerprint, while Python goes on with the old one.
    file.write_text("def score(images, prompts):\n    return 100\n")
    with pytest.raises(UserError, match="has changed since it was imported: start Python again"):
        load_function("edited_function:score", "weights.scorer")
    importlib.reload(sys.modules["edited_function"])
    reloaded, other = load_function("edited_function:score", "weights.scorer")
    assert (reloaded([], []), other != fingerprint) == (100, True)
