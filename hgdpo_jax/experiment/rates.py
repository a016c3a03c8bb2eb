"""How fast a workdir's runs were on its machines, for plans to say how long the rest takes."""

import contextlib
import dataclasses
import time
from typing import Any

import jax
from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import fingerprint_of
from hgdpo_jax.base_config import Experiment
from hgdpo_jax.experiment.evaluating import models_of
from hgdpo_jax.experiment.work import TRAINING
from hgdpo_jax.files import write_json
from hgdpo_jax.weights.folders import read_json

_DRAWING = ("generate_pool", "evaluate_policy")
# Stages that draw as `evaluate_policy` does.
_SAME = {"sweep_scale": "evaluate_policy"}
# Its images are few, so that compiling decides its rate.
_IGNORED = "sample_images"
# A stage whose bar counts pairs of images.
_PAIRS = "select_pairs"


@dataclasses.dataclass(frozen=True)
class Rate:
    """Rows per second of a program, and where this is known from, in words."""

    per_second: float
    source: str


def note_rate(experiment: Experiment, workdir: epath.Path, description: str, per_second: float) -> None:
    """Records what `report_rate` gives for this process, in rows as `work` counts them.

    What cannot be recorded is lost: no run ends for it.
    """
    stage, _, part = description.partition(": ")
    program = _SAME.get(stage, stage.partition(" ")[0])
    if stage == _IGNORED or (part and program not in _DRAWING) or (stage in TRAINING and not hosts.is_first()):
        # Or a stage's other work, such as writing its files, or a training, whose first process records it for all.
        return
    # An object store may fail for a moment, and the models of an evaluation need not be valid yet.
    with contextlib.suppress(Exception):
        normalized = any(model.name == part and model.latent_normalization for model in models_of(experiment))
        devices = jax.local_devices()
        values = {
            "rows_per_second": per_second * (2 if stage == _PAIRS or normalized else 1),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            "time": time.time(),
        }
        index, count = (0, 1) if stage in TRAINING else (hosts.index(), hosts.count())
        write_json(_folder(experiment, workdir, program) / f"host-{index}-of-{count}.json", values)


def rate_of(experiment: Experiment, workdir: epath.Path, run_folder: epath.Path, program: str) -> Rate | None:
    """The rate last seen with these settings, or the one that the run's preflight estimates; None if neither is known.

    Of several processes it is the sum over those of the last run.
    """
    folder = _folder(experiment, workdir, program)
    noted = {path.name: read_json(path) for path in folder.glob("*.json")} if folder.is_dir() else {}
    if noted:
        last = max(noted, key=lambda name: noted[name]["time"])
        together = [values for name, values in noted.items() if name.partition("-of-")[2] == last.partition("-of-")[2]]
        hosts_words = f"{len(together)} hosts, each " if len(together) > 1 else ""
        source = f"as last seen with {hosts_words}{noted[last]['devices']}"
        return Rate(sum(values["rows_per_second"] for values in together), source)
    file = run_folder / "preflight" / "preflight.json"
    found = read_json(file) if file.is_file() else {}
    if not (examined := found.get("programs", {}).get(program)):
        return None
    share = min(map(float, found["total"]["device_hours"]))
    seconds = examined["roofline_seconds"] / share
    words = f"as preflight estimates for {found['target']}:{found['devices']} at {share:.0%} of the roofline"
    return Rate(examined["rows"] * found["devices"] / seconds, words)


def _folder(experiment: Experiment, workdir: epath.Path, program: str) -> epath.Path:
    """Where the rates of a program are stored, by what decides its speed besides the devices."""
    pool = experiment.pool
    workload: dict[str, Any] = {
        "dtype": experiment.dtype,
        "family": experiment.weights.family,
        "base": experiment.weights.base,
        "size": [pool.width, pool.height],
    }
    if program in _DRAWING:
        workload |= {"attention": experiment.attention, "guided": pool.guidance != 1, "steps": pool.steps}
    elif program == "train_policy":
        workload |= {"objective": experiment.objective.name(), "rank": experiment.adapter.rank}
    elif program == "score_pool":
        workload["scorer"] = experiment.weights.scorer
    elif program in ("check_pairs", "measure"):
        workload["scorers"] = [experiment.weights.scorer, *experiment.evaluate.scorers]
    return workdir / "rates" / f"{program}-{fingerprint_of(workload)}"
