"""What a run says while it works: scalars and images for TensorBoard and as plain files, and progress bars."""

import collections
import contextlib
import io
import json
import math
import sys
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from hgdpo_jax import hosts
from hgdpo_jax.files import is_remote, write_bytes, write_text

LOG = "log.jsonl"
_QUIET_SECONDS = 10.0
_RATE_WINDOW = 20
_REPORT_SECONDS = 60.0
# Of a run's time, the share that uploads of its log take at most.
_UPLOAD_SHARE = 0.05


class RunLog:
    """Writes a stage's scalars to log.jsonl (one JSON object a line) and, with its images, to TensorBoard files.

    Of several processes, which log the same, the first one writes.
    """

    def __init__(self, folder: epath.PathLike):
        self._folder = epath.Path(folder)
        self._resumed_at = 0
        self._events: EventsWriter | None = None
        self._next_flush = 0.0
        # Where files grow line by line: object stores cannot append, so `flush` uploads them as a whole.
        self._growing = self._folder
        if is_remote(self._folder):
            self._growing = epath.Path(tempfile.mkdtemp())
            weakref.finalize(self, self._growing.rmtree, missing_ok=True)

    def resume(self, step: int) -> None:
        """Forgets what was logged after `step`, so that a run that was killed and goes on there has each step once."""
        if not hosts.is_first():
            return
        self._resumed_at = step
        if lines := _read_lines(self._folder):
            kept = [line for line in lines if _step_of(line) <= step]
            write_text(self._growing / LOG, "".join(f"{line}\n" for line in kept))

    def count(self, step: int) -> int:
        """How many lines were logged of `step`, the same answer on all processes."""
        lines = _read_lines(self._folder) if hosts.is_first() else []
        return hosts.from_first(sum(_step_of(line) == step for line in lines))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs numbers by name."""
        if not values or not hosts.is_first():
            return
        numbers = {name: float(value) for name, value in values.items()}
        self._growing.mkdir(parents=True, exist_ok=True)
        with (self._growing / LOG).open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._write(step, [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])

    def image(self, step: int, name: str, picture: bytes) -> None:
        """Logs a picture, the content of a PNG file, also as images/NAME-STEP.png."""
        if not hosts.is_first():
            return
        write_bytes(self._folder / "images" / f"{name}-{step:06d}.png", picture)
        with Image.open(io.BytesIO(picture)) as opened:
            width, height = opened.size
        content = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=picture)
        self._write(step, [Summary.Value(tag=name, image=content)])

    def flush(self) -> None:
        """Makes what was logged so far outlast a kill."""
        begin = time.monotonic()
        if self._events is not None:
            self._events.flush()
        if self._growing != self._folder:
            for path in (*self._growing.glob("*.jsonl"), *self._growing.glob("tensorboard/*")):
                write_bytes(self._folder / path.relative_to(self._growing), path.read_bytes())
        now = time.monotonic()
        self._next_flush = now + max(_QUIET_SECONDS, (now - begin) / _UPLOAD_SHARE)

    def close(self) -> None:
        """Hands the last lines to TensorBoard; the log can be written again afterwards."""
        if self._events is not None:
            self.flush()
            self._events.close()
            self._events = None

    def _write(self, step: int, values: list[Summary.Value]) -> None:
        """Writes to TensorBoard's file, at once: tensorboardX's own thread would hang the run on a full disk."""
        if self._events is None:
            folder = self._growing / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            # A run that is killed and goes on within the second must not write over its file.
            self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{uuid.uuid4().hex[:8]}")
            if self._resumed_at:
                # TensorBoard drops what earlier files hold from this step on.
                start = SessionLog(status=SessionLog.START)
                self._events.write_event(Event(wall_time=time.time(), step=self._resumed_at + 1, session_log=start))
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() > self._next_flush:
            self.flush()


def read_scalars(folder: epath.PathLike) -> list[dict[str, float]]:
    """What a RunLog of this folder wrote: one dict a line, "step" among its names; [] where there is none."""
    return [json.loads(line) for line in _read_lines(epath.Path(folder))]


def last_step(folder: epath.PathLike) -> int:
    """The last step that a RunLog of this folder logged, 0 where there is none; a run may be writing it."""
    steps = (_step_of(line) for line in _read_lines(epath.Path(folder)))
    return int(max((step for step in steps if math.isfinite(step)), default=0))


class _Rates:
    """The last rate by description, given to `report` once a minute."""

    def __init__(self, report: Callable[[str, float], object]):
        self._report, self._latest = report, dict[str, float]()
        self._next = time.monotonic() + _REPORT_SECONDS

    def note(self, description: str, rate: float) -> None:
        self._latest[description] = rate
        if time.monotonic() > self._next:
            self.flush()

    def flush(self) -> None:
        self._next = time.monotonic() + _REPORT_SECONDS
        while self._latest:
            self._report(*self._latest.popitem())


# Those of `rates_reported`, the innermost last.
_rates: list[_Rates] = []


@contextlib.contextmanager
def rates_reported(report: Callable[[str, float], object]) -> Iterator[None]:
    """Within it `report` gets what `report_rate` is told, once a minute and at the end."""
    _rates.append(_Rates(report))
    try:
        yield
    finally:
        _rates.pop().flush()


def report_rate(description: str, per_second: float) -> None:
    """Says how fast something is; progress bars do so unless they are told not to."""
    if _rates and per_second:
        _rates[-1].note(description, per_second)


class Progress:
    """A progress bar with rate and time left; a line every ten seconds where the error stream is no terminal."""

    def __init__(self, items: Iterable[Any], total: int, initial: int, description: str, unit: str, reported: bool):
        live = sys.stderr.isatty()
        # The others do their share at the same time.
        quiet = not hosts.is_first()
        self._items = items
        self._bar = tqdm(
            disable=quiet,
            total=total,
            initial=initial,
            desc=description,
            unit=f" {unit}",
            file=sys.stderr if live else _Lines(),
            mininterval=0.5 if live else _QUIET_SECONDS,
            delay=0 if live else _QUIET_SECONDS,
            miniters=1,
            dynamic_ncols=live,
            ascii=not live,
        )
        # From the first update on: before it, programs are compiled.
        self._count, self._times = initial, collections.deque[tuple[float, int]](maxlen=_RATE_WINDOW)
        self._description = description if reported else ""

    def update(self, count: int = 1) -> None:
        """Says that `count` more are done."""
        self._bar.update(count)
        # A bar that is not shown does not count.
        self._count += count
        self._times.append((time.monotonic(), self._count))
        if self._description:
            report_rate(self._description, self.rate())

    def note(self, **values: float) -> None:
        """Shows numbers behind the bar."""
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()}, refresh=False)

    def rate(self) -> float:
        """How many a second, over the last updates; 0 before the second."""
        if not self._times:
            return 0.0
        (begin, first), (end, last) = self._times[0], self._times[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in self._items:
                yield item
                self.update()


def progress(
    items: Iterable[Any] = (),
    *,
    total: int | None = None,
    initial: int = 0,
    description: str,
    unit: str,
    reported: bool = True,
) -> Progress:
    """A bar to iterate over `items` with, or, given a `total`, to open with `with` and update by hand.

    Its rate is that of `report_rate` where it is `reported`.
    """
    if total is None:
        items = list(items)
        total = len(items)
    return Progress(items, total, initial, description, unit, reported)


class _Lines(io.TextIOBase):
    """Turns what tqdm writes, a line over itself, into lines of their own on the error stream."""

    def write(self, text: str) -> int:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)
        return len(text)


def _read_lines(folder: epath.Path) -> list[str]:
    path = folder / LOG
    return path.read_text().splitlines() if path.is_file() else []


def _step_of(line: str) -> float:
    """The step of a log line; infinite where a kill cut it short."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
