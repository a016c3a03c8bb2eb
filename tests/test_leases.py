"""One run writes into a folder at a time, and a run that has died keeps nobody out."""

import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from hgdpo_jax import leases
from hgdpo_jax.errors import UserError

# Another process holds a folder; with a name for its machine it passes for one of another machine.
HOLD = """
import sys, time
from hgdpo_jax import leases
folder, machine = sys.argv[1:]
leases._RENEW_SECONDS = 0.1
if machine:
    leases._machine = lambda: machine
with leases.held(folder):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds `tmp_path`, on this machine or another."""
    processes = []

    def start(machine: str = "") -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(tmp_path), machine]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("machine", ["", "another machine"])
def test_a_living_process_is_named_and_a_dead_one_is_succeeded(hold, tmp_path, monkeypatch, machine):
    monkeypatch.setattr(leases, "_WATCH_SECONDS", 1.0)
    holder = hold(machine)
    with (
        pytest.raises(UserError, match=rf"in use by process {holder.pid} on .+ since \d{{4}}-.+ UTC"),
        leases.held(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    begin = time.monotonic()
    with leases.held(tmp_path):
        took = time.monotonic() - begin
        assert len(list((tmp_path / "lease").iterdir())) == 1
    # Whether a process of this machine lives is seen at once.
    assert took >= 1 if machine else took < 0.5
    assert not (tmp_path / "lease").exists()


def test_a_process_that_passed_for_dead_ends_itself(hold, tmp_path):
    holder = hold()
    for path in epath.Path(tmp_path / "lease").iterdir():
        path.unlink()
    assert holder.wait(10) == 2


def test_a_lease_is_released_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), leases.held(tmp_path):
        raise ZeroDivisionError
    with leases.held(tmp_path):
        pass


def test_of_many_that_claim_at_once_one_holds_the_folder_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leases, "_POLL_SECONDS", 0.01)
    inside, most = [], []

    def work():
        with leases.held(tmp_path, wait=True):
            inside.append(0)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert "waiting for process" in capsys.readouterr().out
