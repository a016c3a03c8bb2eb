"""How far a run is: which of its stages are done, and which were begun and are not."""

import dataclasses
import graphlib
from collections.abc import Sequence

from etils import epath

from hgdpo_jax.artifacts import DONE, STARTED, read_marker
from hgdpo_jax.errors import UserError
from hgdpo_jax.evaluation.results import RESULTS
from hgdpo_jax.files import names_in, similar
from hgdpo_jax.run_log import last_step

EVALUATION = "evaluate_policy"


@dataclasses.dataclass(frozen=True)
class Progress:
    """The stages of the run in `folder`: `done` by name, `unfinished` with how far each is, in words."""

    folder: epath.Path
    done: Sequence[str]
    unfinished: Sequence[str]

    @property
    def is_evaluated(self) -> bool:
        """Whether the evaluation has its results; a copy of them needs no markers of the stage."""
        stage = self.folder / EVALUATION
        return (stage / RESULTS).is_file() and ((stage / DONE).is_file() or not (stage / STARTED).is_file())

    @property
    def missing(self) -> Sequence[str]:
        """What the run lacks for a report: the stages that are unfinished, and the evaluation."""
        begun = self.is_evaluated or any(stage.startswith(EVALUATION) for stage in self.unfinished)
        return self.unfinished if begun else [*self.unfinished, EVALUATION]


def read_progress(folder: epath.Path) -> Progress:
    """The progress of the run in a folder WORKDIR/runs/NAME; raises UserError where there is no such folder."""
    if not folder.is_dir():
        hint = f": did you mean {near}?" if (near := similar(folder)) else ", expected a folder WORKDIR/runs/NAME"
        raise UserError(f"there is no run in {folder}{hint}")
    markers, done = {}, set()
    for stage in sorted(names_in(folder)):
        for marker in (DONE, STARTED):
            if (path := folder / stage / marker).is_file():
                markers[stage] = read_marker(path)
                done |= {stage} if marker == DONE else set()
                break
    # A stage comes after those that it reads.
    order = graphlib.TopologicalSorter({stage: marker["inputs"] for stage, marker in markers.items()}).static_order()
    begun = [stage for stage in order if stage in markers]
    unfinished = []
    for stage in [stage for stage in begun if stage not in done]:
        steps = markers[stage]["settings"].get("train", {}).get("steps")
        logged = last_step(folder / stage)
        unfinished.append(f"{stage} ({logged:,} of {steps:,} steps)" if steps and logged else stage)
    return Progress(folder, [stage for stage in begun if stage in done], unfinished)


def evaluated_and_unfinished(folders: Sequence[epath.PathLike]) -> tuple[list[epath.Path], list[Progress]]:
    """The folders of these runs whose evaluation is done, each once, and the progress of the others.

    Raises UserError where none is evaluated, with what they lack and the command that resumes the first.
    """
    paths = dict.fromkeys(epath.Path(folder).expanduser().resolve() for folder in folders)
    found = [read_progress(path) for path in paths]
    evaluated = [progress.folder for progress in found if progress.is_evaluated]
    if not evaluated:
        lacking = "; ".join(f"{each.folder.name} lacks {', '.join(each.missing)}" for each in found)
        first = found[0].folder
        raise UserError(
            f"none of these runs is evaluated: {lacking}; resume with python -m hgdpo_jax.main --config=FILE "
            f"--config.name={first.name} --workdir={first.parent.parent}"
        )
    return evaluated, [progress for progress in found if not progress.is_evaluated]
