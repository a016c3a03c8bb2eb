"""Times the stage select_pairs on a synthetic pool of the paper's blocks: 64 prompts, 20 images each, at 704x1024.

python -m benchmarks.select_pairs                            # this code
python -m benchmarks.select_pairs --before=OTHER_CHECKOUT    # and other code, in turn

Latents are taken as they were sampled: to decode and encode them anew is work of the devices, which `preflight` counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
_PROMPTS, _SIZE, _LATENT_SHAPE = 64, 20, (128, 88, 4)
# 100,000 prompts.
_PAPER_BLOCKS = 1563


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks.select_pairs", description=__doc__)
    parser.add_argument("--before", type=Path, help="root of another checkout, timed in turn with this one")
    parser.add_argument("--blocks", type=int, default=6, help="of 115 MB each, at least 2 (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each side (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("workdir/benchmarks/select_pairs"))
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_time_stage(options.folder, options.blocks)))
        return
    sides = {"after": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for name, root in sides.items():
        # A checkout may have been moved since it was made: without this, code timed beside itself would not show.
        commit = subprocess.run(["git", "log", "--oneline", "-1"], cwd=root, capture_output=True, text=True).stdout
        print(f"{name}: {commit.strip() or root}", flush=True)
    for number in range(options.rounds + 1):
        for name, root in sides.items():
            found = _call(root, options.folder.resolve() / name, options.blocks)
            # The first call of each writes the pool.
            if number:
                seconds[name].append(found["seconds"])
                cpu[name].append(found["cpu_seconds"])
                print(f"{name}: {found['seconds']:.3f} s per block, {found['cpu_seconds']:.3f} s of CPU", flush=True)
    for name, values in seconds.items():
        each = statistics.median(values)
        print(
            f"{name}: {each:.3f} s per block ({min(values):.3f} to {max(values):.3f}), "
            f"{statistics.median(cpu[name]):.3f} s of CPU; "
            f"{_PAPER_BLOCKS:,} blocks: {each * _PAPER_BLOCKS / 60:.1f} minutes"
        )
    if "before" in seconds:
        ratios = [before / after for before, after in zip(seconds["before"], seconds["after"], strict=True)]
        print(f"times as fast: {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


def _call(root: Path, folder: Path, blocks: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), "--side", f"--folder={folder}", f"--blocks={blocks}"]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _time_stage(folder: Path, count: int) -> dict[str, float]:
    """Seconds per block of the stage on a pool in `folder`, which is made where it is not there.

    `hgdpo_jax` may be that of another checkout.
    """
    from etils import epath

    from hgdpo_jax.artifacts import StageRun, fingerprint_of
    from hgdpo_jax.base_config import base_config, typed
    from hgdpo_jax.data.pool import Pool, blocks_of
    from hgdpo_jax.data.prompts import load_prompts
    from hgdpo_jax.experiment.drawing import drawing_settings
    from hgdpo_jax.experiment.scoring import scoring_settings
    from hgdpo_jax.stages import select_pairs

    config = base_config()
    config.name, config.weights.base, config.weights.scorer = "benchmark", "toon", "toon"
    # The toon autoencoder halves twice, Stable Diffusion's three times.
    height, width, _ = _LATENT_SHAPE
    config.pool.update(size=_SIZE, block=_PROMPTS, height=4 * height, width=4 * width)
    config.pairs.latents = "sampled"
    config.prompts.train = "toon:train"
    workdir = epath.Path(folder)
    pool = Pool(workdir / "pools" / fingerprint_of(drawing_settings(typed(config))))
    scores = pool.scores(fingerprint_of(scoring_settings(typed(config))))
    random = np.random.default_rng(0)
    for block in blocks_of(load_prompts("toon:train", _PROMPTS * count), _PROMPTS):
        for index in range(_SIZE):
            if not scores.path(block, index).exists():
                pool.latents.write(block, index, random.normal(size=(_PROMPTS, *_LATENT_SHAPE)))
                scores.write(block, index, random.normal(size=_PROMPTS))
    earlier = StageRun("score_pool", config.name, workdir, {})
    if not earlier.is_done():
        earlier.start()
        earlier.finish()

    def seconds(blocks: int) -> np.ndarray:
        config.prompts.train_count = _PROMPTS * blocks
        run = StageRun(
            "select_pairs", config.name, workdir, select_pairs.settings(typed(config)), {"score_pool": earlier}
        )
        run.folder.rmtree(missing_ok=True)
        run.start()
        begin = np.array([time.perf_counter(), time.process_time()])
        select_pairs.run(typed(config), run)
        return np.array([time.perf_counter(), time.process_time()]) - begin

    # The first run imports and compiles. What a run takes besides, such as loading the autoencoder, drops out.
    _, one, all_blocks = seconds(1), seconds(1), seconds(count)
    each = (all_blocks - one) / (count - 1)
    return {"seconds": each[0], "cpu_seconds": each[1]}


if __name__ == "__main__":
    main()
