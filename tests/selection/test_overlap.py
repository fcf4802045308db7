import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from longattn.selection.overlap import distinct_scores, unique_tokens
from longattn.windows.cutting import sliding_windows

# Few values and places, so that ties, chains and windows inside others come up.
spans = st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 6), st.integers(-4, 4))
corpora = st.lists(spans, min_size=1, max_size=14)


def columns(rows):
    document, start, length, lds = (np.array(column) for column in zip(*rows, strict=True))
    return lds.astype(float), document, start, start + length


def tokens(i, document, start, stop):
    return {(document[i], t) for t in range(start[i], stop[i])}


@given(corpora, st.sampled_from([0.0, 0.5, 2.0]))
def test_windows_are_bought_best_first_at_what_they_are_then_worth(rows, deviation):
    lds, *spans = columns(rows)
    worth = distinct_scores(lds, *spans, deviation)
    left, held = set(range(len(lds))), set()
    while left:  # the definition, over the whole category

        def value(i, held=held):
            own = tokens(i, *spans)
            return lds[i] - deviation * len(own & held) / len(own)

        best = max(left, key=lambda i: (value(i), -i))
        assert abs(worth[best] - value(best)) < 1e-12
        held |= tokens(best, *spans)
        left.remove(best)


@given(corpora, st.integers(1, 14))
def test_no_token_is_bought_twice_while_an_equally_good_distinct_window_is_left(rows, count):
    lds, *spans = columns(rows)
    order = np.argsort(-distinct_scores(lds, *spans, 1.0), kind="stable")[:count]
    bought = []
    for i in order:
        held = set().union(*(tokens(j, *spans) for j in bought))
        if tokens(i, *spans) & held:
            for other in set(range(len(lds))) - set(order.tolist()):
                assert tokens(other, *spans) & held or lds[other] < lds[i]
        bought.append(i)


@given(corpora)
def test_unique_tokens_are_counted_once(rows):
    _, *spans = columns(rows)
    held = set().union(*(tokens(i, *spans) for i in range(len(rows))))
    assert unique_tokens(*spans) == len(held)


def test_the_back_window_of_a_document_waits_for_distinct_ones():
    (front, back), (other,) = sliding_windows(15, 10), sliding_windows(10, 10)
    start, stop = np.array([front, back, other]).T
    document = np.array(["a", "a", "b"])
    worth = distinct_scores(np.array([1.0, 0.9, 0.6]), document, start, stop, 1.0)
    assert worth.tolist() == [1.0, 0.4, 0.6]
    assert unique_tokens(document, start, stop) == 25
    worth = distinct_scores(np.array([1.0, 0.9, 0.3]), document, start, stop, 1.0)
    assert worth.tolist() == [1.0, 0.4, 0.3], "much better than what is distinct: bought"


def test_no_windows_hold_nothing():
    nothing = np.array([], np.int64)
    assert unique_tokens(nothing, nothing, nothing) == 0
    assert len(distinct_scores(np.array([]), nothing, nothing, nothing, 1.0)) == 0
