"""The ledger of chosen heads: what is in it stays, and null stands for all heads."""

import pytest

from longattn.config import Select
from longattn.selection.heads import HeadChoice, Judgement
from longattn.selection.kept_heads import (
    heads_of,
    heads_record,
    keep_choices,
    kept_choices,
    kept_heads,
)
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record

FIRST = Select(heads="auto")
DEEP = Select(heads={"score": "deep", "head": "auto"}, alpha=0.25)
NUMBERS = range(12)
LAYERS = [(2, 0), (2, 1), (7, 0), (7, 1)]


def test_a_choice_that_is_kept_stays_and_new_categories_are_added(tmp_path):
    folder = OutputFolder(str(tmp_path))
    assert kept_choices(folder, FIRST) == {}
    with pytest.raises(ValueError, match=r"select.heads auto: none were chosen for .*; `longattn"):
        kept_heads(folder, FIRST)
    auc = {"splice 2": (0.8, 0.7, 0.9)}
    told = HeadChoice(3, "both halves chose it", (Judgement(3, auc, auc), Judgement(3, auc, auc)))
    none = HeadChoice(None, "few documents", ())
    keep_choices(folder, FIRST, {"book": told, "code": none}, NUMBERS)
    assert kept_heads(folder, FIRST) == {"book": (3,), "code": None}
    later = FIRST.model_copy(update={"alpha": 2.0})
    more = {"book": HeadChoice(1, "later", ()), "web": HeadChoice(0, "", ())}
    keep_choices(folder, later, more, NUMBERS)
    assert kept_heads(folder, FIRST) == {"book": (3,), "code": None, "web": (0,)}
    assert kept_choices(folder, FIRST).keys() == {"book", "code", "web"}
    of = read_record(folder.record("heads"))["categories"]
    assert (of["book"]["why"], of["book"]["alpha"]) == ("both halves chose it", 0.5)
    assert of["book"]["judgements"][1]["auc"] == {"splice 2": [0.8, 0.7, 0.9]}


def test_choices_among_deeper_layers_are_kept_by_the_layers_and_beside_the_first(tmp_path):
    folder = OutputFolder(str(tmp_path))
    keep_choices(folder, FIRST, {"book": HeadChoice(3, "first", ())}, NUMBERS)
    with pytest.raises(ValueError, match="none were chosen"):
        kept_heads(folder, DEEP)
    choices = {"book": HeadChoice(3, "deep", ()), "code": HeadChoice(None, "few", ())}
    keep_choices(folder, DEEP, choices, LAYERS)
    some = Select(heads={"score": "deep", "layer": 2, "head": "auto"})
    keep_choices(folder, some, {"book": HeadChoice(1, "of layer 2", ())}, LAYERS[:2])
    keep_choices(folder, FIRST, {"web": HeadChoice(0, "", ())}, NUMBERS)
    assert kept_heads(folder, DEEP) == {"book": ((7, 1),), "code": None}
    assert kept_heads(folder, some) == {"book": ((2, 1),)}
    assert kept_heads(folder, FIRST) == {"book": (3,), "web": (0,)}
    assert kept_choices(folder, DEEP)["book"]["alpha"] == 0.25
    record = heads_record(kept_heads(folder, DEEP))
    assert record == {"book": [[7, 1]], "code": None}
    assert heads_of(record) == kept_heads(folder, DEEP)


def test_a_selection_s_record_holds_the_heads_alone():
    assert heads_of({"book": [2, 5], "code": None}) == {"book": (2, 5), "code": None}
