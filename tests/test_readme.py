# SPDX-License-Identifier: Apache-2.0
"""What the README and the pages promise: their Python runs, their commands and links are there."""

import re
from pathlib import Path

import pytest
import torch

from ssmis.registry import LOSSES

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"docs/{path.relative_to(ROOT / 'docs').as_posix()}" for path in sorted((ROOT / "docs").rglob("*.md"))),
]
COMMANDS = [
    'python3 -m venv .venv && .venv/bin/pip install -e ".[medical]" && .venv/bin/python examples/la_10pct.py',
    'python3 -m venv .venv && .venv/bin/pip install -e ".[medical,timm,test]" && .venv/bin/pytest',
]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of guests
@pytest.mark.parametrize("page", sorted(page for page in PAGES if blocks(page, "python")))
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch, tmp_path):
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)  # pages write what they make into the working directory
    assert len(LOSSES) > 0  # loads the table, so that what the page registers is all that is taken back
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        if "import monai" in block or "from monai" in block:
            pytest.importorskip("monai", reason="the rest of the page shows a guest: monai is not installed")
        exec(compile(block, page, "exec"), namespace)
    if "loss" in namespace:
        assert namespace["loss"].isfinite()
        assert namespace["loss"].requires_grad


def test_the_readme_trains_the_student_and_not_the_teacher():
    torch.manual_seed(0)
    (block,) = blocks("README.md", "python")
    namespace: dict = {}
    exec(compile(block, "README.md", "exec"), namespace)
    assert all(p.grad is not None for p in namespace["net_a"].parameters())
    assert all(p.grad is None for p in namespace["net_b"].parameters())


def test_the_page_on_extending_keeps_its_promises(monkeypatch):
    torch.manual_seed(0)
    assert "soft_dice" in LOSSES
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))
    namespace = {"__name__": "page"}
    for block in blocks("docs/extending.md", "python"):
        exec(compile(block, "docs/extending.md", "exec"), namespace)
    assert "logit_distance" in LOSSES
    assert namespace["student_logits"].grad.any()
    assert list(namespace["terms"]) == ["supervised/a", "distance/a", "supervised/b", "distance/b"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stands_alone_in_a_block_of_its_own(command):
    assert f"{command}\n" in blocks("README.md", "bash")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_the_readme_uses_options_the_example_has():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    options = set(
        re.findall(r"(--[a-z][a-z-]+)", "\n".join(re.findall(r"examples/la_10pct\.py(.*)$", text, re.MULTILINE)))
    )
    example = (ROOT / "examples" / "la_10pct.py").read_text(encoding="utf-8")
    assert options
    assert [option for option in sorted(options) if option not in example] == []
