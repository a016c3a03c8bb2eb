"""How fast the programs are, what memory they take, and where their time goes."""

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp

from benchmarks.accelerator.checks import Bench, make_step, step_arguments
from benchmarks.accelerator.models import GUIDANCE, Models, on_device
from benchmarks.accelerator.profile import largest_kinds
from benchmarks.accelerator.programs import Program, timed
from benchmarks.accelerator.rows import Result, Row
from hgdpo_jax.families.model import to_pixels

DTYPE = "bfloat16"


def _time_matrix(bench: Bench) -> Generator[None, None, Result]:
    """A large matrix product in bfloat16: what the card reaches."""
    edge = bench.size.matrix
    left, right = (jax.random.normal(jax.random.key(i), (edge, edge), jnp.bfloat16) for i in range(2))
    program = bench.compiler.submit(jnp.matmul, left, right)
    yield
    call = program.result().call
    found = timed(lambda: jax.block_until_ready(call(left, right)), bench.size.timed_seconds)
    return found | {"flops_per_second": 2.0 * edge**3 / found["seconds"]}


def _result(found: Result, programs: list[Program], flops: float, bench: Bench) -> Result:
    """Timings with the arithmetic and memory of the programs that were timed one after the other."""
    rooflines = [program.roofline_seconds for program in programs]
    # The most that this process ever had: of the first row of a process it is its own.
    in_use = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return found | {
        "flops": flops,
        "flops_per_second": flops / found["seconds"],
        "roofline_seconds": None if None in rooflines else sum(filter(None, rooflines)),
        "peak_bytes": max(program.peak_bytes for program in programs),
        "process_peak_bytes": in_use,
        "compile_seconds": max(program.compile_seconds for program in programs),
    }


def _time_step(pairs: int, bench: Bench) -> Generator[None, None, Result]:
    models = bench.models
    step, optimizer = make_step(models, DTYPE)
    arguments = step_arguments(models, optimizer, pairs, bench.size.portrait, DTYPE)
    future = bench.compiler.submit(step, *arguments)
    yield
    program = future.result()
    state, *rest = arguments

    def call():
        nonlocal state
        state, scalars = program.call(state, *rest)
        jax.block_until_ready(scalars)

    found = timed(call, bench.size.timed_seconds)
    least = pairs * bench.least_pair_flops
    result = _result(found, [program], least, bench) | {"pairs_per_second": pairs / found["seconds"]}
    return result | (_kinds(call) if pairs == bench.size.pairs[0] else {})


def _kinds(call: Callable[[], object]) -> Result:
    """Where the time of a call goes; a profiler that fails costs no timings."""
    try:
        return {"kinds": largest_kinds(call)}
    except Exception as error:
        return {"not_profiled": f"{type(error).__name__}: {error}"}


def _sampling_arguments(models: Models, images: int) -> tuple:
    given = on_device(models.inputs(images, models.size.portrait))
    parameters = models.parameters(DTYPE, "unet")
    return parameters, given["latents"], given["states"], given["empty_states"], ()


def _score_arguments(models: Models, images: int) -> tuple:
    given = on_device(models.inputs(images, models.size.portrait))
    embeddings = jnp.ones((images, models.size.clip["projection_dim"]))
    return models.parameters(DTYPE, "vae"), models.scorer_parameters(DTYPE), given["latents"], embeddings


def _decode_and_score(models: Models):
    model, scorer = models.base(DTYPE), models.scorer(DTYPE)

    def score(autoencoder, parameters, latents, prompts):
        return scorer.score_pixels(parameters, to_pixels(model.decode(autoencoder, latents)), prompts)

    return score


def _time_sampling(bench: Bench) -> Generator[None, None, Result]:
    """Guided sampling of images at 704x1024 with decoding and scoring, as `generate_pool` and `score_pool` do it."""
    models, size = bench.models, bench.size
    sample = functools.partial(models.base(DTYPE).sample, steps=size.sampler_steps, guidance=GUIDANCE)
    inputs, (autoencoder, scorer, _, prompts) = (
        _sampling_arguments(models, size.images),
        _score_arguments(models, size.images),
    )
    futures = [
        bench.compiler.submit(sample, *inputs),
        bench.compiler.submit(_decode_and_score(models), autoencoder, scorer, inputs[1], prompts),
    ]
    yield
    programs = [future.result() for future in futures]

    def call():
        jax.block_until_ready(programs[1].call(autoencoder, scorer, programs[0].call(*inputs), prompts))

    found = timed(call, size.timed_seconds, warm=0)
    result = _result(found, programs, sum(program.flops for program in programs), bench)
    return result | {"images_per_second": size.images / found["seconds"]} | _kinds(call)


def _time_unet(pixels: str, batch: int, bench: Bench) -> Generator[None, None, Result]:
    models = bench.models
    given = on_device(models.inputs(batch, getattr(bench.size, pixels)))
    arguments = (models.parameters(DTYPE, "unet"), given["latents"], given["timesteps"], given["states"])
    future = bench.compiler.submit(models.base(DTYPE).noise, *arguments)
    yield
    program = future.result()
    found = timed(lambda: jax.block_until_ready(program.call(*arguments)), bench.size.timed_seconds)
    return _result(found, [program], program.flops, bench)


def _time_first_image(bench: Bench) -> Generator[None, None, Result]:
    """From the start of a new process to its first image, with everything compiled before."""
    futures = [bench.compiler.submit(*program) for program in _first_image_programs(bench.models)]
    yield
    for future in futures:
        future.result()
    command = [sys.executable, "-m", "benchmarks.accelerator", "--first-image", f"--size={bench.size.name}"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - begin, "calls": 1}


def _first_image_programs(models: Models) -> list[tuple]:
    """Sampling and decoding of one image, each with its arguments."""
    model, inputs = models.base(DTYPE), _sampling_arguments(models, 1)
    sample = jax.jit(functools.partial(model.sample, steps=models.size.sampler_steps, guidance=GUIDANCE))
    return [(sample, *inputs), (jax.jit(model.decode_checked), models.parameters(DTYPE, "vae"), inputs[1])]


def draw_first_image(models: Models) -> None:
    """Draws and decodes one image; a process does nothing else."""
    (sample, *inputs), (decode, autoencoder, _) = _first_image_programs(models)
    jax.block_until_ready(decode(autoencoder, sample(*inputs)))


def rows(size) -> list[Row]:
    """This project's rows, with estimates for an H100 with 16 CPU cores; the first of a wave waits for its compiler."""
    steps = {4: 40.0, 1: 4.0, 8: 6.0}
    return [
        Row("matrix product", "timings", 0, 8.0, _time_matrix),
        *(
            Row(f"step, {n} pairs", "timings", 1, steps.get(n, 8.0), functools.partial(_time_step, n))
            for n in size.pairs
        ),
        Row("sampling", "timings", 2, 50.0, _time_sampling),
        *(
            Row(f"unet {pixels}, {n}", "timings", 3, 4.0, functools.partial(_time_unet, pixels, n))
            for pixels in ("portrait", "square")
            for n in size.batches
        ),
        Row("first image", "timings", 3, 25.0, _time_first_image),
    ]
