"""Runs the stages of an experiment that are not done.

    hgdpo --config=toon
    hgdpo --config=configs/mine.py --plan
    hgdpo --config=toon --config.name=milder --config.dpo.beta=10000
    hgdpo --config=toon --stage=sample_images,evaluate_policy

`python -m hgdpo_jax.main` is the same program.
Run the same command again after a stop of any kind: it goes on where it was. Files lie in WORKDIR/runs/NAME/STAGE.
A config's fields, with their meaning, are in hgdpo_jax/base_config.py; --config.FIELD=VALUE changes one.
HGDPO_DEBUG=1 shows the traceback of an error. Exit status: 0 done, 1 unexpected error, 2 something to mend in the
command, its files or the disk, 130 interrupted, 143 terminated.
"""

import os
import sys
from collections.abc import Sequence
from logging import CRITICAL, getLogger
from typing import NoReturn

from absl import flags, logging

from hgdpo_jax import stages
from hgdpo_jax.command_line import given_config
from hgdpo_jax.termination import exit_status, leave


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name); returns the exit status."""
    return exit_status(lambda: _run(arguments), kept="; what is made is kept: run the same command to go on")


def _run(arguments: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "The experiment: a Python file, or one that ships.", flag_values=values)
    flags.DEFINE_string("workdir", "workdir", "Folder of all that is made; a gs:// path works too.", flag_values=values)
    flags.DEFINE_list("stage", [], "Stages to run instead of the config's, comma-separated.", flag_values=values)
    flags.DEFINE_bool("plan", False, "Print the stages, their states and costs; run nothing.", flag_values=values)
    several = "Where several processes share the work; else from the environment, see the README."
    flags.DEFINE_string("coordinator_address", "", f"HOST:PORT of the first process. {several}", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "How many processes there are.", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "Which of them this is, counted from 0.", flag_values=values)
    config = given_config(arguments, values, __doc__, f"Stages: {', '.join(stages.stage_names())}")
    if config is None:
        return
    # Not at the top: --help does not wait for JAX.
    if values.plan:
        from hgdpo_jax.planning import plan

        print(plan(config, values.workdir, values.stage), end="")
        return
    from hgdpo_jax.runner import run

    processes = {name: values[name].value for name in ("coordinator_address", "num_processes", "process_id")}
    run(config, values.workdir, values.stage, **processes)


def command() -> NoReturn:
    """The program `hgdpo`."""
    # What goes wrong in a library reaches main as an exception, and is told in one line there.
    logging.set_verbosity(logging.FATAL)
    # A checkpoint's writers leave what failed to asyncio's log as well.
    getLogger("asyncio").setLevel(CRITICAL)
    # As `python -m` does: configs and functions of the user's own are imported from where the program starts.
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    command()
