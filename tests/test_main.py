"""The command line, with small stages instead of the real ones."""

import io
import os
import re
import subprocess
import sys
import time

import pytest
import small_stages

from hgdpo_jax import hosts, leases
from hgdpo_jax.main import main
from hgdpo_jax.texts import show_all_characters


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the program on an experiment of two stages, draw and judge; returns status, output and errors."""
    monkeypatch.delenv("HGDPO_DEBUG", raising=False)

    def run(*arguments):
        small_stages.forget()
        status = main([f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'work'}", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    with small_stages.in_place(tmp_path, monkeypatch):
        yield run


def one_line(errors: str) -> str:
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_all_stages_run_once_and_are_skipped_the_next_time(command, tmp_path):
    status, out, _ = command()
    assert status == 0
    assert "draw   running: 50 steps" in out and "judge  done in" in out
    status, out, _ = command()
    assert status == 0 and out.count("done before, skipped") == 2
    assert (tmp_path / "work/runs/tiny/draw/drawn").read_text() == "drawn\n"


def test_the_report_is_announced_last(command, tmp_path):
    _, out, _ = command()
    assert out.splitlines()[-1] == f"report: {tmp_path}/work/runs/tiny/judge/report/index.html"


def test_a_name_puts_an_experiment_beside_the_first(command, tmp_path):
    command()
    status, _, _ = command("--config.name=other", "--config.seed=3")
    assert status == 0
    assert sorted(path.name for path in (tmp_path / "work/runs").iterdir()) == ["other", "tiny"]


def test_stages_run_by_name(command):
    status, out, _ = command("--stage=draw")
    assert status == 0 and "judge" not in out
    status, out, _ = command("--stage=judge")
    assert status == 0 and "judge  done" in out


def test_a_stage_whose_input_is_not_done_says_which(command):
    status, _, errors = command("--stage=judge")
    assert status == 2
    assert "judge reads draw, which is not done" in one_line(errors)


def test_the_plan_tells_what_is_done_and_what_it_costs_and_writes_nothing(command, tmp_path, monkeypatch):
    status, out, _ = command("--plan")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["draw", "to", "do", "–", "–", "–", "50", "steps"]
    assert lines[2] == ["judge", "to", "do", "–", "–", "–", "one", "look"]
    assert not (tmp_path / "work").exists()
    monkeypatch.setenv("TROUBLE", "full")
    command()
    _, out, _ = command("--plan")
    assert re.search("draw +done", out) and re.search("judge +partly done", out)
    _, out, _ = command("--plan", "--config.seed=1")
    assert re.search("draw +other settings", out)


def test_changed_settings_are_refused_before_anything_runs(command):
    command()
    status, out, errors = command("--config.pool.steps=7")
    assert status == 2 and out == ""
    assert "pool.steps 50 -> 7" in one_line(errors)


def test_what_a_stage_cannot_do_is_said_before_any_stage_runs(command, tmp_path):
    status, _, errors = command("--config.adapter.rank=0")
    assert status == 2
    assert "adapter.rank is 0" in one_line(errors)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--config.dpo.betta=3", "config.dpo.betta is not a setting: did you mean config.dpo.beta?"),
        ("--config.zzzzzz=3", "config.zzzzzz is not a setting: the settings are in"),
        ("--config.pool.steps=many", "config.pool.steps is 'many', expected a whole number"),
        ("--config=missing.py", "config file missing.py does not exist"),
        ("--stage=jugde", "did you mean judge?"),
        ("--wrkdir=x", "Did you mean: workdir"),
        ("draw", "draw is not a flag"),
        ("--workdir=/proc/nowhere", "workdir /proc/nowhere cannot be written"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_that_helps(command, argument, words):
    status, _, errors = command(argument)
    assert status == 2
    assert words in one_line(errors)


@pytest.mark.parametrize("folder", ["work", "übung"])
def test_a_name_that_libraries_would_write_otherwise_is_refused_before_anything_runs(
    command, tmp_path, monkeypatch, folder
):
    (tmp_path / "ä").mkdir()
    monkeypatch.chdir(tmp_path if folder == "übung" else tmp_path / "ä")
    # What Python says in a Latin-1 locale, of which a machine need not have any.
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    status, _, errors = command(f"--workdir={folder}", "--plan")
    assert status == 2 and "set LC_ALL=C.UTF-8, or PYTHONUTF8=1" in one_line(errors)
    status, _, errors = command("--plan")
    assert status == 0


def test_what_a_terminal_has_no_character_for_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "iso8859-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    show_all_characters()
    print("ü 猫", flush=True)
    assert terminal.buffer.getvalue() == b"\xfc \\u732b\n"


def test_no_experiment_is_one_line_that_helps(capsys):
    assert main([]) == 2
    assert "--config=toon" in one_line(capsys.readouterr().err)


def test_a_misspelt_field_in_a_config_file_is_one_line_that_names_the_file(command, tmp_path):
    (tmp_path / "tiny.py").write_text(
        small_stages.CONFIG.replace("    return", "    config.dpo.betta = 1.0\n    return")
    )
    status, _, errors = command()
    assert status == 2
    assert "tiny.py" in one_line(errors) and "betta" in errors


def test_a_damaged_file_of_an_earlier_stage_is_named_and_made_again_after_deleting_it(command, tmp_path):
    command("--stage=draw")
    drawn = tmp_path / "work/runs/tiny/draw/drawn"
    drawn.write_text("else")
    status, _, errors = command()
    assert status == 2
    assert f"{drawn} was altered" in one_line(errors)
    for path in drawn.parent.iterdir():
        path.unlink()
    drawn.parent.rmdir()
    assert command()[0] == 0


@pytest.mark.parametrize(
    "trouble, status, words",
    [
        ("interrupt", 130, "run the same command to go on"),
        ("terminate", 143, "terminated; what is made is kept: run the same command to go on"),
        ("full", 2, "no space left on the disk (a/file); what is made is kept"),
        ("hidden", 2, "no space left on the disk"),
        ("read-only", 2, "the disk is read-only (a/file)"),
        ("memory", 2, "out of memory (5 bytes): lower pool."),
        ("device", 2, "out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes): lower pool."),
        ("file", 2, "a file is where a folder is expected (a/file)"),
        ("bug", 1, "ZeroDivisionError: oh (traceback in"),
    ],
)
def test_a_stage_that_stops_says_why_in_one_line_and_goes_on_the_next_time(
    command, monkeypatch, trouble, status, words
):
    monkeypatch.setenv("TROUBLE", trouble)
    stopped, _, errors = command()
    assert stopped == status
    assert words in one_line(errors)
    monkeypatch.delenv("TROUBLE")
    status, out, _ = command()
    assert status == 0 and "draw   done before, skipped" in out


STARTED_TWICE = """
import sys
import hgdpo_jax.stages
from hgdpo_jax.main import main

hgdpo_jax.stages.__path__[:] = [sys.argv[1]]
sys.exit(main(sys.argv[2:]))
"""


def test_a_second_start_says_who_is_at_it_and_harms_nothing(command, tmp_path, monkeypatch):
    go, folder = tmp_path / "go", tmp_path / "work/runs/tiny/draw"
    arguments = [str(tmp_path / "stages"), f"--config={tmp_path / 'tiny.py'}", f"--workdir={tmp_path / 'work'}"]
    first = subprocess.Popen(
        [sys.executable, "-c", STARTED_TWICE, *arguments], env=os.environ | {"WAIT_FOR": str(go)}, text=True
    )
    try:
        while not (folder / "drawing.partial").exists():
            assert first.poll() is None
            time.sleep(0.02)
        monkeypatch.setattr(hosts, "start", lambda **_: print("joined"))
        # Refused before the devices are asked for, whose memory the first one needs; several processes join first.
        for arguments, joined in (((), ""), (("--num_processes=2",), "joined\n")):
            status, out, errors = command(*arguments)
            assert (status, out) == (2, joined)
            assert f"{folder} is in use by process {first.pid} on " in one_line(errors)
        assert sorted(path.name for path in folder.iterdir()) == ["drawing.partial", "lease", "started.json"]
        go.touch()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.wait()
    assert (folder / "drawn").read_text() == "drawn\n"


def test_a_system_that_does_not_tell_the_cores_of_a_process_will_do(command, monkeypatch):
    # As macOS.
    monkeypatch.delattr(os, "sched_getaffinity")
    assert command()[0] == 0


def test_hosts_with_the_same_process_number_do_not_disturb_each_other(command, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    # What the first process of another container is about to remove.
    (tmp_path / "work/.writable-1").mkdir(parents=True)
    assert command()[0] == 0
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == [".writable-1", "runs"]


def test_a_workdir_that_hosts_do_not_share_is_refused(command, tmp_path, monkeypatch):
    from_first = hosts.from_first
    monkeypatch.setattr(
        hosts, "from_first", lambda value: ".writable-there" if ".writable" in str(value) else from_first(value)
    )
    status, _, errors = command()
    assert status == 2
    assert f"workdir {tmp_path}/work is not that of process 0: give all of them one that they share" in one_line(errors)


def test_hosts_join_before_weights_are_fetched_and_hashed(command, tmp_path, monkeypatch):
    draw = tmp_path / "stages" / "draw.py"
    draw.write_text(small_stages.DRAW.replace('    return {"seed"', '    print("hashed")\n    return {"seed"'))
    monkeypatch.setattr(hosts, "start", lambda **_: print("joined"))
    status, out, _ = command()
    assert status == 0 and out.splitlines()[:2] == ["joined", "hashed"]
    assert "joined" not in command("--plan")[1]


def test_what_another_run_has_completed_meanwhile_is_not_run_again(command, tmp_path, monkeypatch):
    held = leases.held

    def overtaken(folder, wait=False):
        monkeypatch.setattr(leases, "held", held)
        assert command("--stage=draw")[0] == 0
        return held(folder, wait)

    monkeypatch.setattr(leases, "held", overtaken)
    status, out, _ = command()
    assert status == 0
    assert "draw   done by another run, skipped" in out and "judge  done in" in out
    assert (tmp_path / "work/runs/tiny/draw/drawn").read_text() == "drawn\n"


def test_the_traceback_of_an_unexpected_error_is_kept_in_the_stage_s_folder(command, tmp_path, monkeypatch):
    monkeypatch.setenv("TROUBLE", "bug")
    command()
    assert "ZeroDivisionError" in (tmp_path / "work/runs/tiny/judge/traceback.txt").read_text()


def test_debugging_shows_tracebacks(command, monkeypatch):
    monkeypatch.setenv("HGDPO_DEBUG", "1")
    _, _, errors = command("--stage=jugde")
    assert "Traceback" in errors


def test_help_begins_with_examples_and_does_not_wait_for_jax():
    program = "import sys; from hgdpo_jax.main import main; main(['--help']); assert 'jax' not in sys.modules"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hgdpo --config=toon" in finished.stdout.splitlines()[2]
    assert "--workdir" in finished.stdout and "train_policy" in finished.stdout


def test_the_exit_status_reaches_the_shell():
    command = [sys.executable, "-m", "hgdpo_jax.main", "--config=missing.py"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 2
    assert "missing.py does not exist" in one_line(finished.stderr)
