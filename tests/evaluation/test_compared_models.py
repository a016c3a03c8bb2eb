import pytest

from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.compared_models import ComparedModel, compared_models


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base", ("base", "base", "", 0.0, False, "")),
        ("tuned", ("tuned", "LoRA at 0.5", "tuned", 0.5, False, "")),
        ("tuned@0.8", ("tuned_0_8", "LoRA at 0.8", "tuned", 0.8, False, "")),
        ("tuned@1+lan", ("tuned_1_lan", "LoRA at 1, LAN", "tuned", 1.0, True, "")),
        ("tuned+lan", ("tuned_lan", "LoRA at 0.5, LAN", "tuned", 0.5, True, "")),
        ("a/b-2.safetensors@.25", ("b_2_25", "b-2 at 0.25", "a/b-2.safetensors", 0.25, False, "")),
        ("a/b.c.bin", ("b_c", "b.c at 0.5", "a/b.c.bin", 0.5, False, "")),
        ("old=a/b.safetensors", ("old", "old", "a/b.safetensors", 0.5, False, "")),
        ("folder:renderings/theirs", ("theirs", "theirs", "", 0.0, False, "renderings/theirs")),
    ],
)
def test_a_text_names_a_model(text, expected):
    model = ComparedModel.parse(text, 0.5, False)
    found = (model.name, model.label, model.adapter, model.scale, model.latent_normalization, model.folder)
    assert found == expected


def test_a_folder_that_is_there_is_that_of_a_lora(tmp_path):
    (tmp_path / "style").mkdir()
    model = ComparedModel.parse(f"{tmp_path}/style/@0.7", 0.5, False)
    assert (model.name, model.label, model.scale) == ("style_0_7", "style at 0.7", 0.7)
    assert model.adapter.rstrip("/") == f"{tmp_path}/style"


def test_latent_normalization_of_the_config_holds_for_adapters_alone():
    base, tuned = compared_models(("base", "tuned"), 0.5, True)
    assert tuned.latent_normalization and not base.latent_normalization


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("base",), "at least two"),
        (("base", "tuned", "tuned"), "put NAME= before one"),
        (
            ("base", "tunde"),
            r"expected base, tuned, a LoRA's file \(.safetensors, .*\) or folder, or folder:PATH",
        ),
        (("base@0.5", "tuned"), "only a LoRA has a scale"),
        (("base", "folder:x+lan"), "only a LoRA has a scale"),
    ],
)
def test_what_names_no_model_is_refused(texts, words):
    with pytest.raises(UserError, match=words):
        compared_models(texts, 0.5, False)
