"""What every process of a broken run calls first. Light: each worker imports this."""

import os
import signal

import psutil


def deadly_documents():
    """Set up in every worker: a document with a certain word kills the process that tokenizes it."""
    from longattn.windows.tokenizer import DocumentTokenizer

    encode = DocumentTokenizer.encode

    def guarded(self, text):
        if b"KILLS ITS PROCESS" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"EATS ALL MEMORY" in text:
            import resource

            used = psutil.Process().memory_info().vms
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            text = text * 4096
        return encode(self, text)

    DocumentTokenizer.encode = guarded


def deadly_lines():
    """Set up in every worker: a line with certain words kills the process that reads it."""
    from longattn.corpus import jsonl, reading
    from longattn.pipeline import window_actor
    from longattn.resume import claims

    claims.DEATHS = window_actor.DEATHS = 2
    parsed = jsonl.parsed_line

    def guarded(line, position, column):
        if b"KILLS ITS READER" in line:
            os.kill(os.getpid(), signal.SIGKILL)
        return parsed(line, position, column)

    reading.parsed_line = guarded


def impatient_clients():
    """Set up in every process of a run: a store that does not answer, or fails, is asked again soon."""
    from botocore.retries.standard import ExponentialBackoff

    from longattn.storage import files

    files.READ_TIMEOUT = 1.0
    ExponentialBackoff.delay_amount = lambda self, context: 0.1


def patient_clients():
    """Set up in every process of a run: a store that is away for minutes is asked until it is back."""
    from botocore.retries.standard import ExponentialBackoff

    from longattn.storage import files

    files.TRIES = 200
    ExponentialBackoff.delay_amount = lambda self, context: 1.0


def a_node_that_gets_stuck():
    """Set up in every process of a run: on node STUCK_NODE a document is begun, which is told by a
    file STUCK, and never ended."""
    import time
    from pathlib import Path

    import ray

    from longattn.windows.tokenizer import DocumentTokenizer

    encode = DocumentTokenizer.encode

    def stuck(self, text):
        if ray.get_runtime_context().get_node_id() == os.environ["STUCK_NODE"]:
            Path(os.environ["STUCK"]).touch()
            time.sleep(3600)
        return encode(self, text)

    DocumentTokenizer.encode = stuck


def scorers_that_stand_still():
    """Set up in every process of a run: no batch of windows ever comes back, which is noticed soon."""
    import time

    from ray.data import DataContext

    from longattn.pipeline import score_actor, stopping

    DataContext.get_current().execution_no_progress_timeout_s = 15
    stopping.STALLED = 6.0
    score_actor.ScoreWindows.__call__ = lambda self, batch: time.sleep(3600)


def slow_tables():
    """Set up in every process of a run: each score table takes half a second more."""
    import time

    from longattn.pipeline.table_stage import ScoreTables

    write = ScoreTables._write

    def slowly(self, *arguments):
        time.sleep(0.5)
        write(self, *arguments)

    ScoreTables._write = slowly


def slow_batches():
    """A batch of windows takes BATCH_SECONDS more; that one is begun is told by a file BEGUN."""
    import time
    from pathlib import Path

    from longattn.pipeline.score_actor import ScoreWindows

    score = ScoreWindows._scored

    def slowly(self, batch):
        Path(os.environ["BEGUN"]).touch()
        time.sleep(float(os.environ["BATCH_SECONDS"]))
        return score(self, batch)

    ScoreWindows._scored = slowly
