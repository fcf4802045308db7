import numpy as np
import pytest

from longattn.pipeline import window_actor
from longattn.pipeline.window_actor import SplitWindows, WindowStage
from longattn.resume.claims import (
    DEATHS,
    STRIKES,
    DeadlyDocument,
    DocumentRegistry,
    InThisProcess,
    Registry,
    SplitReader,
    Stopping,
    shared_registries,
)
from longattn.windows.ids import hash_key


def claims(labelled=None, finished=()):
    return Registry(labelled or {}, np.sort(np.array([hash_key(name) for name in finished], "S16")))


def test_the_first_to_ask_cuts_a_document_and_a_later_try_of_it_again():
    here = claims()
    one, two, again = (
        SplitReader(here, "x", "1"),
        SplitReader(here, "y", "1"),
        SplitReader(here, "x", "2"),
    )
    assert here.begin("x", "1") == here.begin("y", "1") == "read"
    assert one("book", "d") and not two("book", "d") and two("code", "d")
    assert here.begin("x", "2") == "read" and again("book", "d")
    assert two.waits_for == {"x"} and here.state().retries == 1


def test_documents_of_finished_splits_are_not_cut_again():
    here = claims(finished=[f"book-{i}" for i in range(700)])
    assert any(hash_key(f"book-{i}").endswith(b"\0") for i in range(700))
    asked = SplitReader(here, "x", "1")
    assert not any(asked("book", str(i)) for i in range(700))
    assert all(asked("book", str(i)) for i in range(700, 1000))
    assert asked.waits_for == set()


def test_what_is_labelled_of_a_document_is_told_and_kept_by_the_split_it_is_under():
    here = claims({"book-d-0": "x", "book-d-2": "gone", "book-e-1": "x"})
    owner, other = SplitReader(here, "y", "1"), SplitReader(here, "x", "1")
    assert owner("book", "d") and owner.labelled == {0: "x", 2: "gone"}
    assert not other("book", "d") and other.kept == {"book-d-0"}
    assert other("book", "e") and other.kept == {"book-d-0"}


def test_a_document_at_which_process_after_process_dies_is_given_up():
    here = claims()
    for attempt in range(STRIKES):
        here.begin("x", str(attempt))
        for document in ("harmless", "deadly"):
            asked = SplitReader(here, "x", str(attempt))
            assert asked("book", document)
            if document == "harmless":
                asked.passed()
    here.begin("x", "last")
    asked = SplitReader(here, "x", "last")
    assert asked("book", "harmless")
    with pytest.raises(DeadlyDocument, match=f"document deadly: {STRIKES} processes died"):
        asked("book", "deadly")


def test_a_split_at_which_process_after_process_dies_is_given_up_and_the_others_are_not():
    here = claims()
    for attempt in range(DEATHS):
        assert [here.begin(split, str(attempt)) for split in ("before", "deadly")] == ["read"] * 2
    for attempt in ("last", "and", "later"):  # whoever comes to it
        assert [here.begin(split, attempt) for split in ("before", "deadly")] == ["read", "deadly"]
    assert here.begin("after", "later") == "read"


def test_splits_begun_together_are_begun_one_by_one_once_a_process_died_among_them():
    shared = shared_registries({}, np.empty(0, "S16"), 2)
    here = DocumentRegistry([InThisProcess(part) for part in shared])
    splits = ["a", "deadly", "z"]
    assert here.begin_all(splits, "0") == ["read"] * 3
    for attempt in range(1, DEATHS + 1):  # it dies at the second, whatever it had before
        assert here.begin_all(splits, str(attempt)) == ["read"]
        assert here.begin_all(splits[1:], str(attempt)) == ["read"]
    assert here.begin_all(splits, "last") == ["read"]
    assert here.begin_all(splits[1:], "last") == ["deadly"]
    assert here.begin_all(splits[2:], "last") == ["read"]
    assert [dict(+part.deaths) for part in shared] == [{"deadly": DEATHS}] * 2
    here.stop()
    assert here.begin_all(["new", "newer"], "last") == ["stop"] * 2


def test_records_that_were_not_claimed_cost_no_call():
    here = claims(finished=["book-done"])
    here.passed = None  # not to be called
    asked = SplitReader(here, "x", "1")
    asked.passed()
    assert not asked("book", "done")
    asked.passed()
    del here.passed
    assert asked("book", "d") and here.state().at == ["book-d"]
    asked.passed()
    assert here.state().at == []


def test_processes_killed_between_documents_are_no_strike():
    here = claims()
    for attempt in range(3 * STRIKES):
        here.begin("x", str(attempt))
        asked = SplitReader(here, "x", str(attempt))
        assert asked("book", "d")
        asked.passed()


def test_nothing_new_is_begun_once_a_stop_is_asked_for():
    here = claims()
    here.stop()
    assert here.begin("x", "1") == "stop"
    with pytest.raises(Stopping):
        SplitReader(here, "x", "1")("book", "d")


def test_registries_that_share_the_documents_answer_as_one():
    finished = np.sort(np.array([hash_key(f"book-done{i}") for i in range(20)], "S16"))
    labelled = {f"book-half{i}-0": "x" for i in range(20)}
    answers = []
    for actors in (1, 3):
        shared = shared_registries(labelled, finished, actors)
        here = DocumentRegistry([InThisProcess(part) for part in shared])
        told = []
        for attempt in ("1", "2"):
            assert here.begin("x", attempt) == here.begin("y", attempt) == "read"
            for split in ("x", "y", "x"):
                asked = here.reader(split, attempt)
                for document in (
                    f"{kind}{i}" for kind in ("done", "half", "new") for i in range(20)
                ):
                    told.append((asked("book", document), dict(asked.labelled)))
                    asked.passed()
                told.append((sorted(asked.kept), asked.waits_for))
        last = here.reader("y", "2")
        assert last("book", "last") and here.state().at == ["book-last"]
        here.fail("y", "broken")
        here.restarted()
        answers.append((told, here.state()))
        here.stop()
        assert here.begin("x", "3") == "stop" and here.state().stopping
    assert answers[0] == answers[1]
    state = answers[0][1]
    assert (state.failed, state.retries, state.restarts) == (["broken"], 2, 1)


@pytest.mark.parametrize("restarted", [True, False])
def test_each_restarted_actor_is_counted(restarted, tmp_path, monkeypatch):
    here = DocumentRegistry(
        [InThisProcess(part) for part in shared_registries({}, np.empty(0, "S16"), 2)]
    )
    monkeypatch.setattr(window_actor, "was_restarted", lambda: restarted)
    stage = WindowStage("builtin", 512, 128, {}, str(tmp_path), 1 << 20, 1 << 20, 1)
    for _ in range(2):
        SplitWindows(stage, here, lambda reports: None)
    assert here.state().restarts == 2 * restarted
