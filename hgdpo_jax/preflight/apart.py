"""Runs a function in a process of its own, with the environment that a compiler for absent hardware needs."""

import contextlib
import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hgdpo_jax.errors import UserError
from hgdpo_jax.preflight.targets import Target

# Module that a platform's compiler lies in, and the extra that installs it.
_COMPILERS = {"cuda": ("jax_cuda12_plugin", "preflight-cuda"), "tpu": ("libtpu", "preflight-tpu")}
_NVIDIA_LIBRARIES = ("cudnn", "cublas", "cuda_nvrtc")


def require_compiler(target: Target) -> None:
    """Raises UserError, naming the extra, where what compiles for a target is not installed."""
    module, extra = _COMPILERS[target.chip.platform]
    if importlib.util.find_spec(module) is None:
        raise UserError(f"compiling for {target.name} needs more packages: pip install -e '.[{extra}]'")


def compiler_environment(target: Target) -> dict[str, str]:
    """Variables that must be set before a process starts that compiles for a target."""
    # Nothing runs on what this machine has, and the compilers' warnings are about hardware that is not there. What they
    # tell in files they tell only when they run.
    common = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if target.chip.platform == "tpu":
        return common | {
            "XLA_FLAGS": "",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-8",
            "TPU_WORKER_HOSTNAMES": "localhost",
            # Beside a process that uses TPUs, or compiles for them.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    libraries = [f"{folder}/lib" for name in _NVIDIA_LIBRARIES if (folder := _nvidia_folder(name))]
    compiler = _nvidia_folder("cuda_nvcc")
    # Triton's kernels are chosen by trying them on the GPU.
    flags = ["--xla_gpu_enable_triton_gemm=false"]
    environment = common | {"LD_LIBRARY_PATH": _before("LD_LIBRARY_PATH", libraries)}
    if compiler:
        flags.append(f"--xla_gpu_cuda_data_dir={compiler}")
        environment["PATH"] = _before("PATH", [f"{compiler}/bin"])
    return environment | {"XLA_FLAGS": " ".join(flags)}


def run_apart(environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns for the arguments in a new process with these variables; its exceptions are raised here.

    Raises RuntimeError, with the last that it said, where the process ends without an answer.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = context.Process(target=_answer, args=(sender, function, arguments), daemon=True)
        # The compilers write on it as they please, without a way to stop them.
        with _variables(environment), _errors_into(said.fileno()):
            process.start()
        sender.close()
        try:
            succeeded, value = receiver.recv()
        except EOFError:
            process.join()
            said.seek(0)
            last = said.read().strip().splitlines()[-1:]
            raise RuntimeError(
                f"the compiler ended with status {process.exitcode}: {last[0] if last else 'it said nothing'}"
            ) from None
        finally:
            process.kill()
            process.join()
    if not succeeded:
        raise value
    return value


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple) -> None:
    try:
        answer = True, function(*arguments)
    except UserError as error:
        answer = False, error
    except Exception as error:
        # Those of JAX cannot be sent.
        answer = False, RuntimeError(f"{type(error).__name__}: {error}")
    sender.send(answer)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _errors_into(file: int) -> Iterator[None]:
    """Processes that start meanwhile have the file for standard error."""
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _nvidia_folder(name: str) -> str:
    """Where a package of NVIDIA's lies; empty where it is not installed."""
    try:
        found = importlib.util.find_spec(f"nvidia.{name}")
    except ModuleNotFoundError:
        return ""
    return next(iter(found.submodule_search_locations or ()), "") if found else ""


def _before(variable: str, folders: list[str]) -> str:
    return os.pathsep.join([*folders, *filter(None, [os.environ.get(variable)])])
