import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from hgdpo_jax.errors import UserError
from hgdpo_jax.families.stable_diffusion import load_adapter, save_adapter
from hgdpo_jax.weights.folders import read_tensor_file, write_weights
from hgdpo_jax.weights.tensor_files import load_tensors, release, save_tensors

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "a": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.array(3, np.int32),
}


def one_line(error):
    return len(str(error.value).splitlines()) == 1


def test_what_is_saved_is_loaded(tmp_path):
    save_tensors(tmp_path / "new" / "x.safetensors", TENSORS, {"origin": "here"})
    tensors, metadata = load_tensors(tmp_path / "new" / "x.safetensors")
    assert metadata == {"origin": "here"}
    for name, array in TENSORS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array)


def test_the_safetensors_library_reads_the_file(tmp_path):
    save_tensors(tmp_path / "x.safetensors", TENSORS)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["b"], TENSORS["b"])


def test_equal_content_gives_equal_bytes(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, {"k": "1", "j": "2"})
    save_tensors(tmp_path / "y", dict(reversed(TENSORS.items())), {"j": "2", "k": "1"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_only_the_file_itself_remains_beside_nothing(tmp_path):
    save_tensors(tmp_path / "x", TENSORS)
    with pytest.raises(KeyError):
        save_tensors(tmp_path / "y", {"complex": np.zeros(2, np.complex128)})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_without_checksum_is_read(tmp_path):
    safetensors.numpy.save_file({"a": np.ones(2, np.float32)}, tmp_path / "x", {"format": "pt"})
    assert load_tensors(tmp_path / "x")[1] == {"format": "pt"}


def test_a_checksum_of_another_program_is_not_taken_for_ours(tmp_path):
    metadata = {"format": "pt", "sha256": "0" * 64}
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    factors = {f"unet.{name}.lora_{part}.weight": np.ones((2, 2), np.float32) for part in "AB"}
    safetensors.numpy.save_file(factors, tmp_path / "x.safetensors", metadata)
    assert read_tensor_file(tmp_path / "x.safetensors").keys() == factors.keys()
    assert load_adapter(tmp_path / "x.safetensors").keys() == {name}
    assert load_tensors(tmp_path / "x.safetensors", foreign=True)[1] == metadata


def test_damage_shows_in_saved_weights_and_adapters(tmp_path):
    write_weights(tmp_path / "w.safetensors", {"a": np.ones((2, 3), np.float32)}, "float32")
    save_adapter({"mid_block.attn1.to_q": {"down": np.ones((2, 2)), "up": np.ones((2, 2))}}, tmp_path / "l.safetensors")
    for name, read in (("w.safetensors", read_tensor_file), ("l.safetensors", load_adapter)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{name} differs from the checksum"):
            read(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.safetensors does not exist") as error:
        load_tensors(tmp_path / "nothing.safetensors")
    assert one_line(error)


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    save_tensors(tmp_path / "x", TENSORS)
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:length])
    with pytest.raises(UserError, match="not a whole safetensors file") as error:
        load_tensors(tmp_path / "x")
    assert one_line(error)


def test_no_altered_byte_changes_what_is_loaded(tmp_path):
    save_tensors(tmp_path / "x", TENSORS, {"origin": "here"})
    content = (tmp_path / "x").read_bytes()
    refused = 0
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1
        (tmp_path / "y").write_bytes(altered)
        try:
            tensors, _ = load_tensors(tmp_path / "y")
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
        else:
            # Only the name of the checksum itself, or a space after the header, may go unnoticed.
            assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert refused > 0.9 * len(content)


def test_reading_takes_no_memory_until_the_tensors_are_used(tmp_path):
    safetensors.numpy.save_file({"a": np.ones((1 << 20,), np.float32)}, tmp_path / "x")
    tracemalloc.start()
    tensors, _ = load_tensors(tmp_path / "x")
    assert tracemalloc.get_traced_memory()[1] < 1 << 19
    tracemalloc.stop()
    assert tensors["a"].sum() == 1 << 20


def test_a_released_view_takes_no_memory_and_can_be_read_again(tmp_path):
    safetensors.numpy.save_file({"a": np.ones((1 << 22,), np.float32), "b": np.ones((3,), np.float32)}, tmp_path / "x")
    tensors, _ = load_tensors(tmp_path / "x")

    def resident():
        (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
        return 1024 * int(line.split()[1])

    before = resident()
    for _ in range(2):
        assert tensors["a"].sum() == 1 << 22
        assert resident() > before + (1 << 23)
        release(tensors["a"])
        assert resident() < before + (1 << 22)


def test_a_type_that_numpy_lacks_is_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8]}}'
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="holds tensors of type 'F8_E4M3', expected one of") as error:
        load_tensors(tmp_path / "x")
    assert one_line(error)
