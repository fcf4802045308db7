"""Where scaling stops being linear: a queue model of a run on 1 to 512 GPUs.

    python tests/bench/scale.py measure     what the model takes from this machine, in processor time
    python tests/bench/scale.py [NAME=VALUE ...]     the model; names are the fields of Rates

A block of windows passes: the claims actor (for its documents), a window actor, the driver (which
hands it to a scorer), a scorer, the driver again (which hands it to a task of the sink), and the
upload. The monitor hears of it beside. Each is a station with servers and a queue; what is in flight
is bounded, as Ray Data bounds it; service times vary by a quarter. What the stations take is measured
(`measure`, `longattn bench`, tests/bench/windows.py); their interplay at sizes that were not run is
computed.
"""

import heapq
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import Any

import pyarrow as pa

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Rates:
    """Seconds of one server, and sizes; the defaults are what was measured on the README's machine."""

    window_ms: float = 7.00  # scoring a window of 32768 tokens on an H200, Llama-3.1-8B shape
    tokens_per_core: float = 11.5e6  # the window stage, a second of one core
    block_mib: float = 32.0
    document_tokens: float = 65_536  # a long document
    driver_ms: float = 10.8  # of the driver's processor for a block
    claim_ms: float = 0.515  # of the claims actor's processor for a call; two calls a document
    claims_actors: int = 8
    report_ms: float = 0.445  # of the monitor's, for a batch of windows
    batch: int = 32
    upload_s: float = 0.7  # packing and uploading a labelled file
    writers: int = 128  # of them at once
    window_tokens: int = 32768
    drivers: int = 1  # runs of a share each, which ask each other nothing

    @property
    def windows(self) -> int:
        """Of a block: 9 bytes a token."""
        return max(1, int(self.block_mib * 2**20 / (9 * self.window_tokens)))


class Station:
    """Servers with one queue; a job is (service seconds, what follows)."""

    def __init__(self, model: "Model", servers: float) -> None:
        self.model, self.free, self.servers = model, servers, servers
        self.queue: deque[tuple[float, Any]] = deque()
        self.busy = 0.0

    def give(self, seconds: float, then: Any) -> None:
        self.queue.append((seconds * self.model.random.gauss(1, 0.25), then))
        self._start()

    def _start(self) -> None:
        while self.free and self.queue:
            self.free -= 1
            seconds, then = self.queue.popleft()
            self.busy += max(seconds, 0)
            self.model.after(max(seconds, 0), lambda then=then: self._end(then))

    def _end(self, then: Any) -> None:
        self.free += 1
        then()
        self._start()


class Model:
    """One run on so many GPUs, with window actors to match: see the module."""

    def __init__(self, gpus: int, rates: Rates, blocks: int) -> None:
        self.random = random.Random(0)
        self.now, self._events, self._number = 0.0, [], count()
        self.rates, self.left, self.done = rates, blocks, 0
        tokens = rates.windows * rates.window_tokens
        self.cut = tokens / rates.tokens_per_core
        self.score = rates.windows * rates.window_ms / 1e3
        self.claims = 2 * tokens / rates.document_tokens * rates.claim_ms / 1e3
        # A tenth more window actors than it takes, each with a block being made.
        actors = math.ceil(1.1 * gpus * self.cut / self.score)
        self.stations = {
            "claims": Station(self, rates.claims_actors),
            "window": Station(self, actors),
            "driver": Station(self, 1),
            "score": Station(self, gpus),
            "monitor": Station(self, 1),
            "upload": Station(self, rates.writers),
        }
        self.room = actors + 4 * gpus  # blocks in flight: two in a scorer's hands, two before it
        for _ in range(self.room):
            self._begin()
        while self._events:
            self.now, _, what = heapq.heappop(self._events)
            what()

    def after(self, seconds: float, what: Any) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._number), what))

    def _begin(self) -> None:
        if self.left:
            self.left -= 1
            self._go(self._way())

    def _way(self) -> Iterator[tuple[str, float]]:
        rates = self.rates
        yield "claims", self.claims
        yield "window", self.cut
        yield "driver", rates.driver_ms / 2e3
        yield "score", self.score
        reports = math.ceil(rates.windows / rates.batch)
        self.stations["monitor"].give(reports * rates.report_ms / 1e3, lambda: None)
        yield "driver", rates.driver_ms / 2e3
        self._begin()  # out of the object store's budget once the sink has it
        yield "upload", rates.upload_s
        self.done += 1

    def _go(self, way: Iterator[tuple[str, float]]) -> None:
        for name, seconds in way:
            self.stations[name].give(seconds, lambda: self._go(way))
            return


def simulate(rates: Rates) -> None:
    alone = 0.0
    print(
        "GPUs  blocks/s  G tokens/s  of linear  busy: " + "  ".join(("claims", "driver", "monitor"))
    )
    for gpus in [n for n in GPUS if n == 1 or n >= rates.drivers]:
        drivers = min(gpus, rates.drivers)
        model = Model(gpus // drivers, rates, 60 * gpus // drivers)
        rate = drivers * model.done / model.now
        alone = alone or rate
        shares = {
            name: s.busy / model.now / s.servers
            for name, s in model.stations.items()
            if name in ("claims", "driver", "monitor")
        }
        print(
            f"{gpus:4}  {rate:8.1f}  {rate * rates.windows * rates.window_tokens / 1e9:10.3f}  "
            f"{rate / alone / gpus:9.0%}        "
            + "  ".join(f"{share:6.0%}" for share in shares.values()),
            flush=True,
        )


# --- what this machine takes ----------------------------------------------------------------------


class SleepingWindows:
    """Gives blocks as a window actor does, at once."""

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for _ in range(int(batch["blocks"][0])):
            time.sleep(0.01)
            yield pa.table({"x": [bytes(300_000)]})  # large enough not to travel through the driver


class SleepingScores:
    def __call__(self, batch: pa.Table) -> pa.Table:
        time.sleep(0.02)
        return batch


STAGES = ("windows", "windows and scores", "windows, scores and files")


def dispatch(actors: int, blocks: int, stages: int = 3) -> float:
    """Seconds of the driver's processor for blocks of a run's own execution plan, or its first stages.

    Nothing of a run is in them but the plan: what they take is Ray's.
    """
    import ray
    from ray.data import ActorPoolStrategy, Datasink

    class Sink(Datasink[int]):
        def write(self, blocks: Any, ctx: Any) -> int:
            return sum(1 for _ in blocks)

    tasks = [{"blocks": 10} for _ in range(blocks // 10)]
    windows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        SleepingWindows,
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(size=max(1, actors // 2)),
        num_cpus=0.01,
    )
    if stages == 1:
        return _consumed(windows)
    scored = windows.map_batches(
        SleepingScores,
        batch_size=8,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=0.01,
    )
    if stages == 2:
        return _consumed(scored)
    began = time.process_time()
    scored.write_datasink(Sink(), ray_remote_args={"num_cpus": 0}, concurrency=4)
    return time.process_time() - began


def _consumed(blocks: Any) -> float:
    """Seconds of the driver's processor until all blocks have come."""
    began = time.process_time()
    for _ in blocks.iter_internal_ref_bundles():
        pass
    return time.process_time() - began


def calls(actor: Any, call: Any, number: int) -> float:
    """Seconds of an actor's processor for one call."""
    import ray

    def clock() -> float:
        return ray.get(actor.__ray_call__.remote(lambda _: time.process_time()))

    began = clock()
    for start in range(0, number, 100):
        ray.get([call(i) for i in range(start, start + 100)])
    return (clock() - began) / number


def measure() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import numpy as np
    import ray
    from ray.data.context import DataContext

    from longattn.pipeline.monitor import RunMonitor
    from longattn.pipeline.on_ray import OnDriverNode
    from longattn.resume.claims import Registry

    folder = tempfile.mkdtemp(prefix="la-")  # short: Ray puts Unix sockets below it
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=folder,
        logging_level="ERROR",
        object_store_memory=400 * 2**20,
    )
    try:
        context = DataContext.get_current()
        context.target_max_block_size, context.enable_progress_bars = 300_000, False
        registry = OnDriverNode(Registry, {}, np.empty(0, "S16"))
        registry.ask("begin", "s", "1")()
        actor = registry._actor
        told = calls(actor, lambda i: actor.call.remote("claim", "s", "1", f"book-{i:032x}"), 3000)
        print(f"registry: {told * 1e3:.3f} ms a call, {1 / told:,.0f} calls/s", flush=True)
        monitor = OnDriverNode(RunMonitor, 0.01)._actor
        told = calls(
            monitor,
            lambda i: monitor.call.remote("add_scored", Counter(book=8), 32768, 1, 1, 1),
            3000,
        )
        print(f"monitor: {told * 1e3:.3f} ms a call, {1 / told:,.0f} calls/s", flush=True)
        for actors in (2, 8):
            for stages, name in enumerate(STAGES, 1):
                few, many = (dispatch(actors, blocks, stages) for blocks in (50, 250))
                took = (many - few) / 200 * 1e3
                print(f"driver, {actors} scoring actors, {name}: {took:.2f} ms a block", flush=True)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> None:
    if arguments == ["measure"]:
        measure()
        return
    kinds = {field.name: field.type for field in fields(Rates)}
    given = dict(argument.split("=") for argument in arguments)
    rates = replace(Rates(), **{name: kinds[name](value) for name, value in given.items()})
    print(rates)
    simulate(rates)


if __name__ == "__main__":
    main(sys.argv[1:])
