import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.folders import content_fingerprint, read_json, resolve_source


def test_an_existing_folder_is_its_own_source(tmp_path):
    assert str(resolve_source(tmp_path)) == str(tmp_path)


def test_an_unknown_source_is_told_what_was_expected():
    with pytest.raises(UserError, match="some/model is not an existing folder, expected .* toon"):
        resolve_source("some/model")


def test_the_fingerprint_follows_contents_and_names_alone(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "unet").mkdir(parents=True)
        (tmp_path / folder / "unet" / "config.json").write_text("{}")
    (tmp_path / "two" / "README.md").write_text("A model card.")
    first = content_fingerprint(tmp_path / "one")
    assert first == content_fingerprint(tmp_path / "two")
    (tmp_path / "two" / "unet" / "config.json").write_text("{ }")
    assert first != content_fingerprint(tmp_path / "two")
    (tmp_path / "one" / "unet").rename(tmp_path / "one" / "vae")
    assert first != content_fingerprint(tmp_path / "one")


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_broken_json_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json") as error:
        read_json(tmp_path / "config.json")
    assert len(str(error.value).splitlines()) == 1
