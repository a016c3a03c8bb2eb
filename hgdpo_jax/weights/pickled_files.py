"""Weights that PyTorch pickled (.bin, .ckpt), read by PyTorch without running code of theirs."""

import pickle

import ml_dtypes
import numpy as np
from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.files import local_copy
from hgdpo_jax.weights.conversion import some


def load_pickled(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Arrays of a pickled file, read from the disk as they are used.

    Raises UserError where PyTorch is not installed, or the file is damaged or holds anything but tensors.
    """
    path = epath.Path(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is pickled, which only PyTorch reads: pip install 'hgdpo_jax[torch]', or convert it to safetensors"
        ) from error
    try:
        with local_copy(path) as local:
            content = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds code or objects besides weights, which are not run: convert it to safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is not a whole file of pickled weights ({reason}): convert it to safetensors"
        ) from error
    # Lightning, which trained the first of these models, keeps its own state beside the weights.
    content = content.get("state_dict", content) if isinstance(content, dict) else {"": content}
    if others := [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{path} holds {some(others)} besides tensors: convert it to safetensors")
    return {name: _to_array(tensor) for name, tensor in content.items()}


def _to_array(tensor) -> np.ndarray:
    import torch

    # NumPy's own types lack bfloat16.
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()
