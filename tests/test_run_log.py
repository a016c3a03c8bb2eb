"""Logs that a resumed run continues, and progress that says how fast."""

import io
import resource
import sys
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from hgdpo_jax import run_log
from hgdpo_jax.pages.pictures import png_bytes
from hgdpo_jax.run_log import RunLog, progress, read_scalars


def test_scalars_are_lines_that_can_be_read_back(tmp_path):
    log = RunLog(tmp_path)
    log.scalars(1, {"loss": np.float32(0.5), "margin": 2})
    log.scalars(2, {})
    log.close()
    assert read_scalars(tmp_path) == [{"step": 1, "loss": 0.5, "margin": 2.0}]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_folder_without_a_log_has_no_scalars(tmp_path):
    assert read_scalars(tmp_path) == []


def test_a_resumed_run_has_each_step_once(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": step})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    resumed = RunLog(tmp_path)
    resumed.resume(2)
    for step in (3, 4):
        resumed.scalars(step, {"loss": 10 * step})
    resumed.close()
    assert [(line["step"], line["loss"]) for line in read_scalars(tmp_path)] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_a_picture_is_a_file_too(tmp_path):
    picture = png_bytes(np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3))
    log = RunLog(tmp_path)
    log.image(7, "samples", picture)
    log.close()
    assert (tmp_path / "images" / "samples-000007.png").read_bytes() == picture


def test_tensorboard_reads_what_was_logged_and_forgets_what_was_killed(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": 0.5 * step})
    log.close()
    resumed = RunLog(tmp_path)
    resumed.resume(2)
    resumed.image(3, "samples", png_bytes(np.zeros((4, 5, 3), np.uint8)))
    resumed.close()
    first, second = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    events = list(read_events(first))
    assert [(event.step, event.summary.value[0].simple_value) for event in events[1:]] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    _, start, image = read_events(second)
    assert start.step == 3 and start.session_log.status == start.session_log.START
    assert (image.summary.value[0].image.width, image.summary.value[0].image.height) == (5, 4)


def read_events(path):
    """TensorBoard's records: length, its checksum, content, its checksum."""
    content = path.read_bytes()
    while content:
        length = int.from_bytes(content[:8], "little")
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_a_file_that_cannot_grow_stops_the_run_instead_of_hanging_it(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            for step in range(2000):
                log.scalars(step, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.close()


def test_progress_counts_and_measures_the_rate():
    with progress(total=12, initial=4, description="draw", unit="image") as bar:
        bar.update(2)
        assert bar.rate() == 0.0, "the first update is what compiling takes"
        for _ in range(3):
            time.sleep(0.02)
            bar.update(2)
        # Sleeps last as long as they say or longer.
        assert 0 < bar.rate() <= 100


def test_progress_goes_through_all_items():
    assert list(progress([3, 1, 2], description="read", unit="file")) == [3, 1, 2]


def test_without_a_terminal_progress_says_whole_lines_and_few(monkeypatch):
    monkeypatch.setattr(run_log, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress(total=20, description="draw", unit="image") as bar:
        for _ in range(20):
            time.sleep(0.01)
            bar.note(loss=0.5)
            bar.update()
    lines = sys.stderr.getvalue().splitlines()
    assert 1 <= len(lines) < 10
    assert all(line.startswith("draw:") and "image/s" in line for line in lines)
    assert "20/20" in lines[-1] and "\r" not in sys.stderr.getvalue()


def test_without_a_terminal_a_short_task_says_nothing(capsys):
    list(progress(range(3), description="read", unit="file"))
    assert capsys.readouterr().err == ""
