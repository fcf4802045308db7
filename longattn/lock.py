"""A run's hold on its output folder, so that two runs never write to one at once.

`_longattn/hold.json` names the owner. It is created only where there is none: exclusively on disk,
by a conditional put on object stores that have it. Its owner rewrites it every BEAT seconds; one
that stays the same for EXPIRES seconds, or whose process on this machine is gone, is taken over:
replaced, never removed, by the one run that got a hold on taking over this very one.
No clocks are compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longattn.config import redact
from longattn.storage import filesystem, is_local, join, read_bytes, remove, write_json

log = logging.getLogger("longattn")

BEAT = 3.0
EXPIRES = 60.0


class HeldError(RuntimeError):
    """Another run is at work in the folder, told in one line that names it."""


class Hold:
    """A hold that is beating; `lost` once another run has taken it over."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.lost = False
        self.owner: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "beat": 0,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Raises HeldError naming the owner that is alive."""
        while not self._create():
            dead = self._wait_out()
            if dead is not None and self._replace(dead):
                log.warning("took over the hold of a run that has died")
                break
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost and self._token() == self.owner["token"]:
            remove(self.url)

    def _create(self) -> bool:
        fs, path = filesystem(self.url)
        owner = json.dumps(self.owner).encode()
        if is_local(fs):  # fsspec looks whether a local file is there, and then writes it
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with Path(path).open("xb") as file:
                    file.write(owner)
            except FileExistsError:
                return False
            return True
        for last in (False, False, True):
            try:
                fs.pipe_file(path, owner, mode="create")
                break
            except OSError:  # stores tell of a condition that failed in words of their own
                if self._token() is not None:
                    break
                if last:  # what was there may have been released since
                    raise
        # The hold that is there may be ours: a store may have done what it then failed to answer.
        return self._token() == self.owner["token"]

    def _replace(self, dead: str) -> bool:
        """Put this hold in the dead one's place, unless another did; raises HeldError while it does."""
        with _holding(Hold(f"{self.url}.{dead}")):
            there = self._token() == dead
            if there:
                write_json(self.url, self.owner)
            return there

    def _wait_out(self) -> str | None:
        """Watch the hold that is there; its token once its owner is dead, None once it is gone.

        Raises HeldError as soon as it is seen to live.
        """
        first = read_bytes(self.url)
        deadline = time.monotonic() + EXPIRES
        while True:
            now = read_bytes(self.url)
            if now is None:
                return None
            there = _parsed(now)
            alive = _alive(there)
            if alive or (now != first and _parsed(first or b"").get("token")):
                raise HeldError(
                    f"{redact(self.url.rpartition('/_longattn/')[0])} is being written by the run of "
                    f"host {there.get('host')}, pid {there.get('pid')}, since {there.get('since')}"
                )
            if alive is False or time.monotonic() > deadline:
                return there.get("token", "")
            time.sleep(BEAT / 4)

    def _token(self) -> str | None:
        data = read_bytes(self.url)
        return None if data is None else _parsed(data).get("token", "")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self._token() != self.owner["token"]:
                    self.lost = True
                    return
                self.owner["beat"] += 1
                write_json(self.url, self.owner)
            except Exception as error:  # noqa: BLE001 - clients of stores raise their own
                # A store that is away now is away for others too: they cannot take over meanwhile.
                log.warning("cannot renew the hold on the output: %s", type(error).__name__)


def _parsed(data: bytes) -> dict[str, Any]:
    """The owner; empty while another process has created the file and not yet written it."""
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _alive(owner: dict[str, Any]) -> bool | None:
    """Whether the owner's process lives; None where that cannot be seen from here."""
    if owner.get("host") != socket.gethostname() or not owner.get("boot"):
        return None
    if owner["boot"] != _boot():
        return False
    return _started(owner["pid"]) == owner["started"] is not None


def _boot() -> str:
    """Names this boot of this machine and its process space; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot: a pid may be used again. None: no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def held(output: str) -> AbstractContextManager[Hold]:
    """Have the folder for oneself inside the block; raises HeldError where another run has it."""
    return _holding(Hold(join(output, "_longattn", "hold.json")))


@contextmanager
def _holding(hold: Hold) -> Iterator[Hold]:
    hold.acquire()
    try:
        yield hold
    finally:
        hold.release()
