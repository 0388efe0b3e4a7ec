# SPDX-License-Identifier: Apache-2.0
"""Pages that are made from the package: nothing registered is missing, and every loss has its formula."""

import importlib.util
from pathlib import Path

import pytest

import ssmis

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("griffe", reason="the documentation's extra is not installed")
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(hooks, name):
    return hooks.on_page_markdown((ROOT / "docs" / name).read_text(encoding="utf-8"))


def test_every_loss_has_its_formula_and_says_where_gradient_goes(hooks):
    parts = {part.split("\n")[0]: part for part in page(hooks, "losses.md").split("\n## ")[1:]}
    assert list(parts) == list(ssmis.LOSSES)
    for name, part in parts.items():
        assert part.count("$") >= 2, f"{name} has no formula"
        assert "**Gradient:**" in part, name
        assert "In code: [`" in part, name


@pytest.mark.parametrize("table", ["LOSSES", "NETS", "UNCERTAINTY", "BANKS", "RECIPES"])
def test_the_page_of_components_lists_every_table(hooks, table):
    text = page(hooks, "components.md")
    assert "{{" not in text
    assert [name for name in getattr(ssmis, table) if f"| `{name}` |" not in text] == []


def test_every_recipe_is_told_beside_paper_and_public_code():
    text = (ROOT / "docs" / "recipes" / "index.md").read_text(encoding="utf-8")
    built_in = [name for name in ssmis.RECIPES if ssmis.RECIPES[name].factory.__module__.startswith("ssmis.")]
    pages = " ".join(path.stem for path in (ROOT / "docs" / "recipes").glob("*.md"))
    assert [name for name in built_in if f"`{name}`" not in text and name not in pages] == []
