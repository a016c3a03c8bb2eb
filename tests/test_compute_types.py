import pytest

from hgdpo_jax import PickScore, StableDiffusion
from hgdpo_jax.errors import UserError
from hgdpo_jax.main import main


@pytest.mark.parametrize("dtype", ["float16", "float64", "fp16", ""])
def test_a_run_in_another_type_ends_before_it_begins(dtype, tmp_path, capsys):
    arguments = ["--config=configs/toon_smoke.py", f"--config.dtype={dtype}", f"--workdir={tmp_path / 'work'}"]
    assert main([*arguments, "--plan"]) == main(arguments) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and first.startswith(f"error: config.dtype is '{dtype}'")
    assert first.endswith("expected 'bfloat16' or 'float32'")
    assert ("loss scaling" in first) == (dtype == "float16")
    assert not (tmp_path / "work").exists()


def test_a_model_in_float16_is_refused_by_every_public_name(tiny_base, tiny_scorer):
    for call in (
        lambda: StableDiffusion.load(tiny_base, dtype="float16"),
        lambda: StableDiffusion.load(tiny_base).computing_in("float16"),
        lambda: PickScore.load(tiny_scorer, dtype="float16"),
    ):
        with pytest.raises(UserError, match="dtype is 'float16' .*loss scaling"):
            call()
