"""The ledger of chosen heads: what is in it stays, and null stands for all heads."""

import pytest

from longattn.selection.heads import HeadChoice, Judgement
from longattn.selection.kept_heads import chosen_categories, heads_of, keep_choices, kept_heads
from longattn.storage.output_folder import OutputFolder
from longattn.storage.records import read_record


def test_a_choice_that_is_kept_stays_and_new_categories_are_added(tmp_path):
    folder = OutputFolder(str(tmp_path))
    assert chosen_categories(folder) == set()
    with pytest.raises(ValueError, match=r"select.heads auto: none were chosen for .*; `longattn"):
        kept_heads(folder)
    auc = {"splice 2": (0.8, 0.7, 0.9)}
    told = HeadChoice(3, "both halves chose it", (Judgement(3, auc, auc), Judgement(3, auc, auc)))
    keep_choices(folder, {"book": told, "code": HeadChoice(None, "few documents", ())}, 0.5)
    assert kept_heads(folder) == {"book": (3,), "code": None}
    keep_choices(folder, {"book": HeadChoice(1, "later", ()), "web": HeadChoice(0, "", ())}, 2.0)
    assert kept_heads(folder) == {"book": (3,), "code": None, "web": (0,)}
    assert chosen_categories(folder) == {"book", "code", "web"}
    of = read_record(folder.record("heads"))["categories"]
    assert (of["book"]["why"], of["book"]["alpha"]) == ("both halves chose it", 0.5)
    assert of["book"]["judgements"][1]["auc"] == {"splice 2": [0.8, 0.7, 0.9]}


def test_a_selection_s_record_holds_the_heads_alone():
    assert heads_of({"book": [2, 5], "code": None}) == {"book": (2, 5), "code": None}
