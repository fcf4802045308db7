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
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from longattn.errors import HeldError
from longattn.storage.files import filesystem, is_local, read_bytes, remove, write_json
from longattn.text import printable, without_secrets

log = logging.getLogger("longattn")

BEAT = 3.0
EXPIRES = 60.0


class Owner(TypedDict, total=False):
    """Whose a hold is, as its file says; empty of a broken one."""

    token: str
    host: str
    boot: str
    """This boot of the machine, and the process space."""
    pid: int
    started: str | None
    since: str
    takeovers: int
    """Of runs that died one after the other, before this one."""
    beat: int


class Hold:
    """A hold that is beating; `lost` once another run has taken it over, which `on_lost` is told."""

    def __init__(self, url: str, on_lost: Callable[[HeldError], None] | None = None) -> None:
        self.url = url
        self.lost = False
        self.on_lost = on_lost
        self.owner: Owner = {
            "token": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "takeovers": 0,
            "beat": 0,
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Raises HeldError naming the owner that is alive."""
        while not self._create():
            dead = self._wait_out()
            if dead is not None and self._replaced(dead):
                log.warning("took over the hold of a run that has died")
                break
        self._thread.start()

    def release(self) -> None:
        """Within seconds, also when the store does not answer: then the hold expires."""
        self._ended.set()
        self._thread.join(2 * BEAT)
        if self._thread.is_alive():
            log.warning("the hold on the output was left to expire")
        elif not self.lost and self._token() == self.owner["token"]:
            remove(self.url)

    def _create(self) -> bool:
        fs, path = filesystem(self.url)
        owner = json.dumps(self.owner).encode()
        if is_local(fs):  # fsspec looks whether a local file is there, and then writes it
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            try:
                file = Path(path).open("xb", buffering=0)  # noqa: SIM115
            except FileExistsError:
                return False
            with file:
                try:
                    file.write(owner)
                except OSError:  # the disk is full
                    remove(self.url)
                    raise
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
        ours: bool = self._token() == self.owner["token"]
        return ours

    def _replaced(self, dead: Owner) -> bool:
        """Put this hold in the dead one's place, unless another did; raises HeldError while it does."""
        token = dead.get("token", "")
        with holding(Hold(f"{self.url}.{token}")):
            unchanged: bool = self._token() == token
            if unchanged:
                self.owner["takeovers"] = dead.get("takeovers", 0) + 1
                write_json(self.url, self.owner)
            return unchanged

    def _wait_out(self) -> Owner | None:
        """Watch the hold that is there; what it says once its owner is dead, None once it is gone.

        Raises HeldError as soon as it is seen to live, be it by a change.
        """
        first = read_bytes(self.url)
        deadline = time.monotonic() + EXPIRES
        told = False
        while True:
            now = read_bytes(self.url)
            if now is None:
                return None
            there = _parsed(now)
            alive = _alive(there)
            if alive or (there and now != first):
                raise HeldError(
                    f"{self._output} is being written by the run of "
                    f"host {there.get('host')}, pid {there.get('pid')}, since {there.get('since')}"
                )
            if alive is False or time.monotonic() > deadline:
                return there
            if not told:
                log.info(
                    "waiting up to %.0f s to see whether the run of host %s lives, which holds %s",
                    EXPIRES,
                    printable(str(there.get("host"))),
                    self._output,
                )
                told = True
            time.sleep(BEAT / 4)

    @property
    def _output(self) -> str:
        return without_secrets(self.url.rpartition("/_longattn/")[0])

    def _token(self) -> str | None:
        data = read_bytes(self.url)
        return None if data is None else _parsed(data).get("token", "")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self._token() != self.owner["token"]:
                    self.lost = True
                    if self.on_lost:
                        told = f"{self._output}: another run has taken the folder over"
                        self.on_lost(HeldError(told))
                    return
                self.owner["beat"] += 1
                write_json(self.url, self.owner)
            except Exception as error:  # noqa: BLE001 - clients of stores raise their own
                # A store that is away now is away for others too: they cannot take over meanwhile.
                log.warning("cannot renew the hold on the output: %s", type(error).__name__)


def _parsed(data: bytes) -> Owner:
    """The owner; empty while another process has not yet written the file, and of a broken one."""
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(owner, dict):
        return {}
    # The token names a file, and the number is added to: what is neither is of no owner.
    token, takeovers = owner.get("token", ""), owner.get("takeovers", 0)
    known = isinstance(token, str) and re.fullmatch("[0-9A-Za-z]{0,64}", token)
    return cast(Owner, owner) if known and isinstance(takeovers, int) else {}


def _alive(owner: Owner) -> bool | None:
    """Whether the owner's process lives; None where that cannot be seen from here."""
    if owner.get("host") != socket.gethostname() or not owner.get("boot"):
        return None
    if owner["boot"] != _boot():  # before a new start of it, or in another container on it
        return None
    started = owner.get("started")
    return started is not None and _started(owner.get("pid")) == started


def _boot() -> str:
    """Names this boot of this machine and its process space; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot + os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _started(pid: int | None) -> str | None:
    """When a process started, in ticks since boot: a pid may be used again. None: no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def dead_owner(url: str) -> Owner | None:
    """What a hold says whose run is dead; None where there is none. Raises HeldError where it lives."""
    return Hold(url)._wait_out()


@contextmanager
def holding(hold: Hold) -> Iterator[Hold]:
    """Have a hold inside the block; raises HeldError where another run has it."""
    hold.acquire()
    try:
        yield hold
    finally:
        hold.release()
