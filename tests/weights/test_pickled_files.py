import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.weights.folders import read_tensor_file, read_weights
from hgdpo_jax.weights.pickled_files import load_pickled

torch = pytest.importorskip("torch")

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2).half(), "c": torch.full((2, 2), 3).bfloat16()}


class Payload:
    """What runs code of its own when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def one_line(error):
    return len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("content", [TENSORS, {"state_dict": TENSORS, "global_step": 3}], ids=["bare", "lightning"])
def test_tensors_are_read_in_their_types(tmp_path, content):
    torch.save(content, tmp_path / "x.ckpt")
    arrays = read_tensor_file(epath.Path(tmp_path / "x.ckpt"))
    assert [array.dtype for array in arrays.values()] == [np.float32, np.float16, ml_dtypes.bfloat16]
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(arrays[name].astype(np.float32), tensor.float().numpy())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.fp16.bin"])
def test_a_folder_of_pickled_weights_is_read(tmp_path, name):
    torch.save(TENSORS, tmp_path / name)
    assert read_weights(epath.Path(tmp_path), "model").keys() == TENSORS.keys()


def test_code_in_a_file_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": TENSORS, "callbacks": Payload(tmp_path / "ran")}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="x.ckpt holds code or objects besides weights") as error:
        load_pickled(tmp_path / "x.ckpt")
    assert one_line(error) and not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match="x.ckpt") as error:
        load_pickled(tmp_path / "x.ckpt")
    assert one_line(error) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [TENSORS | {"step": 3}, [1, 2]], ids=["dictionary", "list"])
def test_what_is_no_tensor_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match="besides tensors") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length):
    torch.save(TENSORS, tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:length])
    with pytest.raises(UserError, match="x.bin") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"x.bin is pickled.* pip install 'hgdpo_jax\[torch\]'") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)
