# SPDX-License-Identifier: Apache-2.0
"""The page on bad input says what is said."""

import re
from pathlib import Path

import pytest
from engine.bad_input import KINDS

pytest.importorskip("nibabel")
PAGE = Path(__file__).parents[2] / "docs" / "bad_input.md"
ROWS = dict(re.findall(r"^\| ([^|`]+?) \| `(.*)` \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))


def message_of(kind, root):
    """What is said, without the folder of the test."""
    try:
        told = KINDS[kind](root)
    except (ValueError, OSError) as error:
        told = str(error)
    assert told, f"{kind}: nothing was said"
    return re.sub(r"\s*\n\s*", " ", told.replace(f"{root}/", "").replace(str(root), "DATA"))


def test_the_page_and_the_list_have_the_same_kinds():
    assert sorted(ROWS) == sorted(KINDS)
    assert len(KINDS) >= 30


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_wrong_is_told_as_the_page_says(kind, tmp_path):
    pattern = ".*".join(re.escape(part) for part in ROWS[kind].split("..."))
    assert re.fullmatch(pattern, message_of(kind, tmp_path)), message_of(kind, tmp_path)
