"""Runs a function in a process of its own, with the environment that a compiler for absent hardware needs."""

import importlib.metadata
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from hgdpo_jax.errors import UserError
from hgdpo_jax.preflight.targets import Target

# The package that holds a platform's compiler, and the extra that installs it.
_COMPILERS = {"cuda": ("jax-cuda12-plugin", "preflight-cuda"), "tpu": ("libtpu", "preflight-tpu")}
_NVIDIA_LIBRARIES = ("cudnn", "cublas", "cuda_nvrtc")


def require_compiler(target: Target) -> None:
    """Raises UserError, naming the extra, where the compiler for a target is not installed."""
    package, extra = _COMPILERS[target.chip.platform]
    # Not by its module, which `leave_out_cuda` hides.
    if not list(importlib.metadata.distributions(name=package)):
        raise UserError(f"compiling for {target.name} needs more packages: pip install 'hgdpo_jax[{extra}]'")


def compiler_environment(target: Target) -> dict[str, str]:
    """Variables that must be set before a process starts that compiles for a target."""
    # Nothing runs on this machine's own devices, and the compilers' warnings are about absent hardware. What the
    # compilers write into files, they write only when they run: hence no cache.
    common = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if target.chip.platform == "tpu":
        return common | {
            "XLA_FLAGS": "",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # Another process may use TPUs, or compile for them, at the same time.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    libraries = [f"{folder}/lib" for name in _NVIDIA_LIBRARIES if (folder := _nvidia_folder(name))]
    # Triton's kernels are chosen by trying them on the GPU.
    flags = "--xla_gpu_enable_triton_gemm=false"
    environment = common | {"LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", libraries)}
    if compiler := _nvidia_folder("cuda_nvcc"):
        flags += f" --xla_gpu_cuda_data_dir={compiler}"
        environment["PATH"] = _before("PATH", [f"{compiler}/bin"])
    return environment | {"XLA_FLAGS": flags}


def run_apart(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns for the arguments in a new process with these variables; its exceptions are raised here.

    Raises RuntimeError with the last line that the process wrote where it ends without an answer.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = epath.Path(name)
        # Pickle is safe here: this program alone writes and reads both files, in a folder that it has just created.
        (folder / _CALL).write_bytes(pickle.dumps((function, arguments)))
        # The compilers write to standard error as they please, without a way to stop them.
        ended = subprocess.run(
            [sys.executable, "-m", __name__, name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            stderr=subprocess.PIPE,
            errors="replace",
        )
        if not (folder / _ANSWER).exists():
            last = (ended.stderr.strip() or "it wrote nothing").splitlines()[-1]
            raise RuntimeError(f"the compiler ended with status {ended.returncode}: {last}")
        succeeded, value = pickle.loads((folder / _ANSWER).read_bytes())
    if not succeeded:
        raise value
    return value


# Files of a call's temporary folder.
_CALL, _ANSWER = "call", "answer"


def _answer(folder: epath.Path) -> None:
    function, arguments = pickle.loads((folder / _CALL).read_bytes())
    try:
        answer = True, function(*arguments)
    except UserError as error:
        answer = False, error
    except Exception as error:
        # JAX's exceptions cannot be pickled.
        answer = False, RuntimeError(f"{type(error).__name__}: {error}")
    (folder / _ANSWER).write_bytes(pickle.dumps(answer))


def _nvidia_folder(name: str) -> str:
    """The folder of one of NVIDIA's packages; empty where it is not installed."""
    try:
        found = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        return ""
    return next(iter(found.submodule_search_locations or ()), "") if found else ""


def _before(variable: str, folders: list[str]) -> str:
    return os.pathsep.join([*folders, *filter(None, [os.environ.get(variable)])])


if __name__ == "__main__":
    _answer(epath.Path(sys.argv[1]))
