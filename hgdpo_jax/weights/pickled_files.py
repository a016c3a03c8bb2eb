"""Weights that PyTorch pickled (.bin, .ckpt, .pt), read by PyTorch without running code in the files.

With `weights_only` PyTorch reads every pickle with its own unpickler, which builds tensors and plain containers
and refuses to import or call anything else. This holds for zip archives and for the sequence of pickles that PyTorch
wrote before 1.6. For tar archives, its first format, it holds only since PyTorch 2.6 (CVE-2025-32434): they are refused
unread.
"""

import pickle
import tarfile

import ml_dtypes
import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError, as_user_error
from hgdpo_jax.files import local_copy
from hgdpo_jax.texts import some


def load_pickled(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Arrays of a pickled file, read from the disk as they are used; files from before PyTorch 1.6 are read at once.

    Raises UserError where PyTorch is not installed, or the file is damaged or holds anything but tensors.
    """
    path = epath.Path(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is pickled, which only PyTorch reads: pip install 'hgdpo_jax[torch]', or convert it to safetensors"
        ) from error
    # What a damaged pickle raises depends on where it is damaged.
    with as_user_error(f"{path} is not a complete file of pickled weights"), local_copy(path) as local:
        is_zip = _starts_as_zip(local)
        if not is_zip and tarfile.is_tarfile(local):
            raise UserError(f"{path} is a tar archive, which is not read: convert it to safetensors")
        try:
            content = torch.load(local, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} holds code or objects besides weights, which are not run: convert it to safetensors"
            ) from error
    # Lightning, which trained the first of these models, stores its own state beside the weights.
    content = content.get("state_dict", content) if isinstance(content, dict) else {"": content}
    if others := [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{path} holds {some(others)} besides tensors: convert it to safetensors")
    try:
        return {name: _to_array(tensor) for name, tensor in content.items()}
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} holds tensors of a type that NumPy lacks ({reason}): convert it to float16") from error


# As torch.load tells them apart.
def _starts_as_zip(path: epath.PathLike) -> bool:
    with epath.Path(path).open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _to_array(tensor) -> np.ndarray:
    import torch

    # NumPy's own types lack bfloat16.
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
