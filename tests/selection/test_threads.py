"""Threads: results in their order, no more made ahead than is said, errors where they are asked for."""

import threading

import pytest

from longattn.selection.threads import in_threads, read_ahead


def test_results_come_in_order_and_few_are_ahead():
    made = []

    def square(n):
        made.append(n)
        return n * n

    results = in_threads(square, range(20), 3)
    for n in range(20):
        assert next(results) == n * n and len(made) <= n + 5
    assert list(results) == []


def test_the_next_item_is_made_while_one_is_used():
    begun = [threading.Event() for _ in range(4)]

    def items():
        for n, event in enumerate(begun):
            event.set()
            yield n

    following = read_ahead(items())
    assert next(following) == 0
    assert begun[1].wait(10) and not begun[3].is_set()
    assert list(following) == [1, 2, 3]


def test_what_a_reader_raises_comes_after_what_it_gave():
    def items():
        yield 1
        raise ValueError("broken")

    following = read_ahead(items())
    assert next(following) == 1
    with pytest.raises(ValueError, match="broken"):
        next(following)
