"""Leases: at most one run writes into a folder at a time, on local disks, NFS and object stores.

    FOLDER/lease/<token>    who holds the folder, and a counter that a thread of the holder increases

A process claims a folder in three steps: it lists FOLDER/lease, writes a file with a name of its own, and lists again.
It holds the folder if the second list has no other file than its own and those of dead processes; otherwise it removes
its file and starts over. Of two processes that claim at the same time at least one sees the other's file. This needs no
conditional write, only that a listing shows every file created before it. That holds for local disks, for NFS (a client
discards its cached listing when it creates a file in a folder), and for GCS and S3.

A holder on the same machine, recognised by boot id and process namespace, is dead if its process has ended. For any
other holder the claimant watches the counter for 30 seconds: clocks of two machines are never compared. A process that
was suspended for longer finds its file gone when it next renews, and ends.
"""

import contextlib
import dataclasses
import errno
import json
import os
import random
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from hgdpo_jax import hosts
from hgdpo_jax.artifacts import LEASE
from hgdpo_jax.errors import UserError
from hgdpo_jax.files import is_remote, names_in

_RENEW_SECONDS = 5.0
# Several renewals: a holder's interpreter may be busy, or its file server slow.
_WATCH_SECONDS = 30.0
_POLL_SECONDS = 1.0
# A living holder shows itself sooner; after that the claimant says why it does not proceed.
_QUIET_SECONDS = 10.0


@contextlib.contextmanager
def held(folder: epath.PathLike, wait: bool = False) -> Iterator[None]:
    """Within this context no other run holds `folder`.

    Every process of a run enters it. The first one claims the folder for all, and releases it when all have left.

    Args:
      folder: Where the run is going to write; it is created.
      wait: Whether to wait, after a line about the holder, where another run holds the folder.

    Raises:
      UserError: Another run holds the folder, and `wait` is false. It is raised on every process.
    """
    lease = hosts.by_first(lambda: _claim(epath.Path(folder), wait))
    try:
        yield
        # The others may still write, and must not leave before the first one has written what they read next.
        hosts.wait()
    finally:
        if lease:
            lease.release()


def refuse_neighbour(folder: epath.Path) -> None:
    """Raises UserError if a process of this machine holds `folder`; this needs neither devices nor other processes."""
    for name in names_in(folder / LEASE):
        about = _About.parse(_read(folder / LEASE / name) or "")
        if about.is_on_this_machine() and about.is_running():
            raise about.refusal(folder)


def _claim(folder: epath.Path, wait: bool) -> "_Lease":
    place, told = folder / LEASE, False
    while True:
        seen = {name: _read(place / name) for name in names_in(place)}
        holder = next((name for name, text in seen.items() if text is not None and _lives(place / name, text)), None)
        if holder:
            # Read again: a holder that has just claimed may not have written yet.
            about = _About.parse(_read(place / holder) or "")
            if not wait:
                raise about.refusal(folder)
            if not told:
                print(f"waiting for {about}, which writes into {folder}", flush=True)
                told = True
            time.sleep(_POLL_SECONDS)
            continue
        if lease := _Lease.claim(place, set(seen)):
            return lease
        # Another process claims at the same moment: not again in step with it.
        time.sleep(_POLL_SECONDS * random.uniform(0.1, 1.0))


@dataclasses.dataclass(frozen=True)
class _About:
    """A holder: what identifies its process, and what people want to know of it."""

    host: str = "an unknown host"
    process: int = 0
    since: str = "an unknown time"
    # Boot id and process namespace; "" where the system does not tell them.
    machine: str = ""
    # Distinguishes a process from a later one with the same number.
    process_start: str = ""

    @classmethod
    def here(cls) -> "_About":
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            machine=_machine(),
            process_start=_process_start(os.getpid()),
        )

    @classmethod
    def parse(cls, text: str) -> "_About":
        try:
            return cls(**json.loads(text.partition("\n")[0]))
        except (ValueError, TypeError):
            return cls()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}"

    def refusal(self, folder: epath.Path) -> UserError:
        return UserError(
            f"{folder} is in use by {self}: let that run end or stop it, or keep this one apart with "
            "--config.name=NAME or --workdir=DIR"
        )

    def is_on_this_machine(self) -> bool:
        return bool(self.machine) and self.machine == _machine()

    def is_running(self) -> bool:
        """Whether the process exists, given that it would be one of this machine."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            # A process of another user.
            pass
        # The start may be hidden, too.
        return _process_start(self.process) in ("", self.process_start)


class _Lease:
    """A claim that succeeded; a thread renews it."""

    def __init__(self, path: epath.Path, about: str):
        self._path, self._about, self._count = path, about, 0
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    @classmethod
    def claim(cls, place: epath.Path, dead: set[str]) -> "_Lease | None":
        """Claims a folder whose lease files `dead` have no living holder; None if another process claims it too."""
        lease = cls(place / uuid.uuid4().hex, json.dumps(dataclasses.asdict(_About.here())))
        place.mkdir(parents=True, exist_ok=True)
        try:
            lease._path.write_text(lease._content())
            if names_in(place) <= dead | {lease._path.name}:
                for name in dead:
                    (place / name).unlink(missing_ok=True)
                lease._thread.start()
                return lease
        except FileNotFoundError:
            # Another process has just released the folder and removed the place of leases.
            return None
        except BaseException:
            lease._remove()
            raise
        lease._remove()
        return None

    def release(self) -> None:
        """Gives the folder back; what cannot be removed any more, for example on a full disk, counts as dead."""
        self._released.set()
        self._thread.join()
        self._remove()

    def _content(self) -> str:
        # Always of the same length, because it is written over in place.
        return f"{self._about}\n{self._count:012d}\n"

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._path.unlink(missing_ok=True)
            if not is_remote(self._path):
                self._path.parent.rmdir()

    def _renew(self) -> None:
        while not self._released.wait(_RENEW_SECONDS):
            self._count += 1
            try:
                self._write_over()
            except FileNotFoundError:
                # This process stood still for so long that it passed for dead.
                print(
                    f"error: another run took over {self._path.parent.parent}, or its lease was deleted: "
                    "this run ends, so that no two write into the folder",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(2)
            except Exception:
                # What a file server or a full disk refuses now may succeed the next time.
                continue

    def _write_over(self) -> None:
        """Writes the counter; raises FileNotFoundError where another process has removed the file."""
        if is_remote(self._path):
            if self._path.name not in names_in(self._path.parent):
                raise FileNotFoundError(str(self._path))
            self._path.write_text(self._content())
            return
        # In place: it must not create the file anew, and needs no room on the disk.
        descriptor = os.open(self._path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, self._content().encode(), 0)
        finally:
            os.close(descriptor)


def _lives(path: epath.Path, text: str) -> bool:
    """Whether the holder that wrote `text` into the lease file is alive; it may take until its next renewal."""
    about = _About.parse(text)
    if about.is_on_this_machine():
        return about.is_running()
    begin, told = time.monotonic(), False
    while (passed := time.monotonic() - begin) < _WATCH_SECONDS:
        if passed > _QUIET_SECONDS and not told:
            words = f"{about} held {path.parent.parent}; watching for {_WATCH_SECONDS:.0f} s whether it is alive"
            print(words, file=sys.stderr, flush=True)
            told = True
        time.sleep(min(_POLL_SECONDS, _WATCH_SECONDS / 4))
        now = _read(path)
        if now != text:
            return now is not None
    return False


def _read(path: epath.Path) -> str | None:
    """The content of a lease file; None where it has been removed."""
    try:
        return path.read_text()
    except OSError as error:
        # On NFS a file that another machine has removed may be listed for a while.
        if error.errno in (errno.ENOENT, errno.ESTALE) or isinstance(error, FileNotFoundError):
            return None
        raise


def _machine() -> str:
    """This machine since it started, and the namespace in which its processes have numbers; "" where unknown."""
    try:
        boot = epath.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(process: int) -> str:
    """When a process started, in the kernel's ticks since boot; "" where that cannot be told, "ended" for a zombie."""
    try:
        status = epath.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # The name of the program, in parentheses, may contain spaces.
    fields = status.rpartition(")")[2].split()
    return "ended" if fields[0] in "ZX" else fields[19]
