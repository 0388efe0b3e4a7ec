# SPDX-License-Identifier: Apache-2.0
"""Rules of the source tree that a linter does not know: which folder may import which, and what no file contains."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ssmis"
FILES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted(
    path
    for folder in ("ssmis", "tests", "benchmarks", "examples", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_relative_to(ROOT / "examples" / "runs")
)

COMPONENTS = {"nets", "uncertainty", "kernels", "memory", "data", "metrics", "schedules"}
ALLOWED = {
    **{name: set() for name in COMPONENTS},
    "losses": {"kernels", "uncertainty"},
    "recipes": {*COMPONENTS, "losses"},
    "engine": {"data", "recipes", "metrics", "uncertainty", "nets", "memory", "losses", "schedules"},
    "report": {"data", "metrics"},
    "_study_rows": {"data", "recipes", "engine"},
    "study": {"data", "recipes", "engine", "report", "_study_rows"},
    "_compare_methods": {"engine", "report"},
    "_compare_record": {"data", "engine", "report", "_compare_methods"},
    "compare": {"data", "engine", "report", "_compare_methods", "_compare_record"},
}
SHARED = {
    "registry",
    "options",
    "_options_json",
    "_checks",
    "_classes",
    "_optional",
    "_vectors",
}  # anyone may import these; they import no folder
EDGES = {"__init__", "_arguments", "cli", "__main__"}  # these may import anything; no folder imports them
SYNC_CALLS = {"item", "tolist", "cpu", "numpy", "cuda"}
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|mnt|root|work|farm|tmp|scratch|Users)/\w")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """Return the folder, or top-level module, of the package that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the absolute names of everything a file imports anywhere, `a.b` for `from a import b`."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{stem}.{alias.name}" for alias in node.names}
    return found


def siblings_of(path: Path) -> set[str]:
    """Return the parts of the package that a file imports, its own left out."""
    parts = {name.split(".")[1] for name in imports_of(path) if name.startswith("ssmis.")}
    known = {part_of(other) for other in FILES}
    return (parts & known) - {part_of(path), "__init__"}


def calls_of(path: Path) -> list[tuple[int, str]]:
    """Return line and name of every call in a file: `f(...)` and `thing.f(...)` are both "f"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
            found.append((node.lineno, name))
    return found


def test_the_import_reader_sees_every_spelling(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    source = tmp_path / "ssmis" / "losses" / "dice.py"
    source.parent.mkdir(parents=True)
    source.write_text(
        "import ssmis.nets.vnet\nfrom ssmis.data import Batch\nfrom ..memory.banks import Fifo\nfrom . import _reduce\n"
        "def late():\n    from ssmis import metrics\n"
    )
    assert imports_of(source) == {
        "ssmis.nets.vnet",
        "ssmis.data.Batch",
        "ssmis.memory.banks.Fifo",
        "ssmis.losses._reduce",
        "ssmis.metrics",
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    part = part_of(path)
    if part in EDGES:
        return
    allowed = ALLOWED.get(part, set()) | (SHARED if part not in SHARED else set())
    wrong = siblings_of(path) - allowed
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}; allowed: {sorted(allowed)}"


def test_every_folder_of_the_package_has_a_rule():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders <= set(ALLOWED)
    assert modules <= set(ALLOWED) | SHARED | EDGES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_guests_are_not_imported(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert not roots & {"monai", "medpy", "SimpleITK", "lightning", "pytorch_lightning", "torchio"}
    if "triton" in roots:
        assert part_of(path) == "kernels", f"{name_of(path)} imports triton outside kernels/"
        assert "triton" in path.stem, f"{name_of(path)} imports triton; its name should say so"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_first_line_is_the_licence(path):
    first = path.read_text(encoding="utf-8").split("\n", 1)[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_a_docstring_and_at_most_320_lines(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name_of(path)} has no docstring"
    assert text.count("\n") <= 320


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_no_file_of_the_package_contains(path):
    text = path.read_text(encoding="utf-8")
    bad = [f"line {line}: {name}()" for line, name in calls_of(path) if name in {"print", "cuda", "breakpoint"}]
    bad += [word for word in ("raise NotImplemented", "TO" + "DO", "FIX" + "ME") if word in text]
    assert not bad, f"{name_of(path)}: {bad}"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) == "losses"], ids=name_of)
def test_a_loss_never_talks_to_the_host(path):
    calls = [f"line {line}: .{name}()" for line, name in calls_of(path) if name in SYNC_CALLS]
    assert not calls, f"{name_of(path)}: {calls}"
    assert not {name for name in imports_of(path) if name.split(".")[0] == "numpy"}


def test_no_file_names_a_folder_of_one_machine():
    texts = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.yml"), *(ROOT / "docs").rglob("*.md")]
    texts += [path for path in (ROOT / ".ci").glob("*") if path.is_file()]
    found = [
        f"{name_of(path)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found
