"""`python -m hgdpo_jax.report`."""

import subprocess
import sys

from runs_on_disk import make_results, write_run

from hgdpo_jax.report import main

FILES = ["index.html", "report.json", "report.md", "report.tex"]


def test_report_lies_beside_the_runs_and_is_printed(many_runs, capsys):
    assert main([str(folder) for folder in many_runs]) == 0
    output = many_runs[0].parent.parent / "report"
    assert sorted(path.name for path in output.iterdir()) == FILES
    printed = capsys.readouterr().out
    assert "Table 1: Win rate of HG-DPO" in printed and "N-20 over N-2 " in printed
    assert printed.splitlines()[-1] == f"report: {output / 'index.html'}"


def test_same_runs_give_the_same_bytes(many_runs, tmp_path):
    for name in ("one", "two"):
        assert main([*map(str, many_runs), f"--output={tmp_path / name}"]) == 0
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_can_be_mended_costs_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "n20").mkdir()
    (tmp_path / "file").write_text("")
    run = str(write_run(tmp_path, make_results("n5")))
    for arguments, words in (
        ([], "no runs are given"),
        ([str(tmp_path / "n20")], "n20 lacks evaluate_policy; resume with python -m hgdpo_jax.main"),
        (["--outptu=x"], "--help lists the flags"),
        ([run, f"--output={tmp_path / 'file' / 'x'}"], "--output=DIR"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_help_says_how_runs_are_named():
    answer = subprocess.run([sys.executable, "-m", "hgdpo_jax.report", "--help"], capture_output=True, text=True)
    assert answer.returncode == 0 and "--output" in answer.stdout and "-SEED" in answer.stdout
