"""The seal of a page: what was written is read, and no byte of it changes unseen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longattn.storage.page_seal import read_seal, with_seal

PAGE = "<html>\n<p>naïve</p>\n</html>"
OF = {"summary": "0a" * 16, "selections/best.json": "", "heads": "f" * 32}


def test_a_page_keeps_its_text_and_says_what_it_tells_of():
    for end in ("", "\n", "\n\n\n"):
        page = with_seal(PAGE + end, OF)
        assert page.startswith(PAGE + "\n<!-- longattn ") and page.endswith(" -->\n")
        assert page.count("\n") == PAGE.count("\n") + 2
        assert read_seal(page.encode()) == read_seal(page.encode() + b"\n\n") == OF
        assert page == with_seal(PAGE, dict(reversed(OF.items())))
    assert read_seal(with_seal("", {}).encode()) == {}


@given(st.integers(0, 10**6), st.integers(1, 255), st.sampled_from(["changed", "gone", "more"]))
def test_no_byte_changes_unseen(place, by, how):
    page = bytearray(with_seal(PAGE, OF).encode())
    place %= len(page) - 1  # all but the last newline
    if how == "changed":
        page[place] ^= by
    elif how == "gone":
        del page[place]
    else:
        page.insert(place, by % 128 or 1)
    if bytes(page) == with_seal(PAGE, OF).encode():
        return  # one of two equal letters is gone, or there are three
    with pytest.raises(ValueError, match=r"^damaged: it "):
        read_seal(bytes(page))


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (b"", "it does not say what it tells of"),
        (PAGE.encode(), "it does not say what it tells of"),
        (with_seal(PAGE, OF).encode() + b"more", "it does not say what it tells of"),
        (with_seal(PAGE, OF).replace("naïve", "naive").encode(), "it is not what its checksum was"),
        (with_seal(PAGE, OF).replace("0a0a", "0a0b").encode(), "it is not what its checksum was"),
    ],
)
def test_what_is_wrong_is_told(page, why):
    with pytest.raises(ValueError, match=f"^damaged: {why}"):
        read_seal(page)
