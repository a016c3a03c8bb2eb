"""Joins the evaluations of many runs into one report, with the tables and figures of the paper where they fill them.

    python -m hgdpo_jax.report workdir/runs/n20-* workdir/runs/n20_sml-*
    python -m hgdpo_jax.report workdir/runs/n2 workdir/runs/n5 --output=tables

A run is a folder WORKDIR/runs/NAME. All runs must have evaluated the same base on the same prompts by the same scorers;
those whose evaluate_policy is not done are listed with what they lack. A NAME that is an experiment of the paper, as in
configs/ (n2, n20_sml, sft_winners, ...), fills a row of its tables, with "-SEED" appended for runs that differ in
train.seed, which become one row. Writes index.html (one file), report.md, report.tex and report.json, and prints the
tables.
"""

import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from hgdpo_jax.command_line import parsed
from hgdpo_jax.errors import UserError
from hgdpo_jax.termination import exit_status


def main(arguments: Sequence[str]) -> int:
    """Runs the command line `arguments` (without the program's name); returns the exit status."""
    return exit_status(lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> None:
    values = flags.FlagValues()
    flags.DEFINE_string(
        "output", None, "Folder to write to; default: WORKDIR/report of the first run.", flag_values=values
    )
    folders = parsed(arguments, values, __doc__)
    if folders is None:
        return
    if not folders:
        raise UserError(
            "no runs are given, expected their folders: python -m hgdpo_jax.report workdir/runs/n20-* "
            "workdir/runs/n20_sml-*"
        )

    # Imported here, because --help does not need them.
    from hgdpo_jax.files import require_store, write_text
    from hgdpo_jax.pages.joined.content import build
    from hgdpo_jax.pages.joined.formats import as_json, as_latex, as_markdown, as_page, as_plain_text
    from hgdpo_jax.pages.joined.progress import evaluated_and_unfinished
    from hgdpo_jax.pages.joined.runs import read_runs

    for folder in folders:
        require_store(folder)
    evaluated, unfinished = evaluated_and_unfinished(folders)
    document = build(read_runs(evaluated), unfinished)
    output = epath.Path(values.output or epath.Path(folders[0]).expanduser().resolve().parent.parent / "report")
    output = output.expanduser()
    texts = {
        "index.html": as_page(document),
        "report.md": as_markdown(document),
        "report.tex": as_latex(document),
        "report.json": as_json(document),
    }
    try:
        for name, text in texts.items():
            write_text(output / name, text)
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another with --output=DIR") from error
    print(as_plain_text(document), end="")
    print(f"report: {output / 'index.html'}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
