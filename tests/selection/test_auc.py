"""AUC and its interval: of all pairs, and of documents drawn again and again in plain Python."""

import random

import numpy as np
import pytest

from longattn.selection.auc import auc


def bootstrap(native, foil, native_group, foil_group, together, draws=600):
    """The interval as its docstring says it: documents are drawn, with all windows of each."""
    draw, values = random.Random(1), []
    for _ in range(draws):
        names = sorted({*native_group})
        of_native = draw.choices(names, k=len(names))
        others = sorted({*foil_group})
        of_foil = of_native if together else draw.choices(others, k=len(others))
        a = [
            x
            for name in of_native
            for x, of in zip(native, native_group, strict=True)
            if of == name
        ]
        b = [x for name in of_foil for x, of in zip(foil, foil_group, strict=True) if of == name]
        values.append(np.mean([(x > y) + (x == y) / 2 for x in a for y in b]))
    return np.quantile(values, [0.025, 0.975])


@pytest.mark.parametrize("together", [False, True])
def test_the_interval_is_that_of_documents_drawn_again(together) -> None:
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(6), [1, 2, 3, 1, 2, 3])
    of_document = rng.normal(size=6)[group]
    native = np.round(of_document + rng.normal(size=12) * 0.3 + 0.8, 1)
    foil = np.round(of_document + rng.normal(size=12) * 0.3, 1)
    value, low, high = auc(native, foil, group, group, np.random.default_rng(0), together=together)
    assert value == np.mean([(x > y) + (x == y) / 2 for x in native for y in foil])
    expected = bootstrap(native, foil, group.tolist(), group.tolist(), together)
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.06)
    assert 0 < low < value < high <= 1


def test_foils_of_the_same_documents_are_drawn_with_them() -> None:
    """What is the same for a document and its foil then cancels: the interval is narrower."""
    document = np.arange(40)
    native = np.random.default_rng(0).normal(size=40)
    widths = []
    for together in (False, True):
        _, low, high = auc(
            native, native - 0.5, document, document, np.random.default_rng(0), together=together
        )
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_windows_of_one_document_are_no_independent_evidence() -> None:
    native, foil = np.array([1.0, 1.0, 1.0, -1.0]), np.zeros(3)
    groups = np.array([0, 0, 0, 1]), np.array([5, 6, 7])
    assert auc(native, foil, *groups, np.random.default_rng(0), together=False) == (0.75, 0.0, 1.0)
    for shift, told in ((2.0, 1.0), (-2.0, 0.0)):
        found = auc(
            foil + shift, foil, groups[1], groups[1], np.random.default_rng(0), together=True
        )
        assert found == (told, told, told)
