import pickle
import sys
import tarfile

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


# PyTorch's format since 1.6, and the one before.
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@FORMATS
@pytest.mark.parametrize("content", [TENSORS, {"state_dict": TENSORS, "global_step": 3}], ids=["bare", "lightning"])
@pytest.mark.parametrize("name", ["x.ckpt", "x.vae.pt"])
def test_tensors_are_read_in_their_types(tmp_path, name, content, zipped):
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    arrays = read_tensor_file(epath.Path(tmp_path / name))
    assert [array.dtype for array in arrays.values()] == [np.float32, np.float16, ml_dtypes.bfloat16]
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(arrays[name].astype(np.float32), tensor.float().numpy())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.fp16.bin"])
def test_a_folder_of_pickled_weights_is_read(tmp_path, name):
    torch.save(TENSORS, tmp_path / name)
    assert read_weights(epath.Path(tmp_path), "model").keys() == TENSORS.keys()


@FORMATS
def test_code_in_a_file_is_refused_and_not_run(tmp_path, zipped):
    content = {"state_dict": TENSORS, "callbacks": Payload(tmp_path / "ran")}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="x.ckpt holds code or objects besides weights") as error:
        load_pickled(tmp_path / "x.ckpt")
    assert one_line(error) and not (tmp_path / "ran").exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match="x.ckpt") as error:
        load_pickled(tmp_path / "x.ckpt")
    assert one_line(error) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("position", range(4))
def test_code_in_any_pickle_of_the_legacy_format_is_refused_and_not_run(tmp_path, position):
    torch.save(TENSORS, tmp_path / "x.ckpt", _use_new_zipfile_serialization=False)
    with (tmp_path / "x.ckpt").open("rb") as file:
        pickles = []
        # Magic number, version and system; what follows is left out.
        for _ in range(3):
            begin = file.tell()
            pickle.load(file)
            end = file.tell()
            file.seek(begin)
            pickles.append(file.read(end - begin))
    pickles = [*pickles[:position], pickle.dumps(Payload(tmp_path / "ran"), protocol=2), *pickles[position + 1 :]]
    (tmp_path / "x.ckpt").write_bytes(b"".join(pickles))
    with pytest.raises(UserError, match="x.ckpt holds code or objects besides weights") as error:
        load_pickled(tmp_path / "x.ckpt")
    assert one_line(error) and not (tmp_path / "ran").exists()


def test_a_tar_archive_is_refused_unread(tmp_path):
    (tmp_path / "pickle").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with tarfile.open(tmp_path / "x.pt", "w:") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.add(tmp_path / "pickle", name)
    with pytest.raises(UserError, match="x.pt is a tar archive") as error:
        load_pickled(tmp_path / "x.pt")
    assert one_line(error) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [TENSORS | {"step": 3}, [1, 2]], ids=["dictionary", "list"])
def test_what_is_no_tensor_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(UserError, match="besides tensors") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)


@FORMATS
@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, length, zipped):
    torch.save(TENSORS, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:length])
    with pytest.raises(UserError, match="x.bin") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "x.bin")
    with pytest.raises(UserError, match=r"x.bin holds tensors of a type that NumPy lacks \(.*Float8") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    torch.save(TENSORS, tmp_path / "x.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"x.bin is pickled.* pip install 'hgdpo_jax\[torch\]'") as error:
        load_pickled(tmp_path / "x.bin")
    assert one_line(error)
