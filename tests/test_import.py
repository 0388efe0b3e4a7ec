# SPDX-License-Identifier: Apache-2.0
"""What an import pulls in: `import ssmis` nothing heavy, a subpackage only what its core needs."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ssmis

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "einops", "scipy", "matplotlib", "h5py", "nibabel", "timm", "monai", "PIL", "jsonargparse"}
OPTIONAL = HEAVY - {"torch", "numpy", "einops"}


REPORT = """
import json, ssmis.{folder}
print(json.dumps(["{folder}", sorted(set(name.split(".")[0] for name in sys.modules))]))
"""


def run(code: str) -> list[str]:
    """Return the lines a fresh interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def imported(statement: str) -> set[str]:
    """Return the top-level modules after a statement in a fresh interpreter."""
    return {name.split(".")[0] for name in run(f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')")}


@pytest.mark.parametrize("statement", ["import ssmis", "from ssmis import LOSSES, NETS", "import ssmis; dir(ssmis)"])
def test_importing_the_package_imports_nothing_heavy(statement):
    assert not imported(statement) & HEAVY


def test_every_folder_imports_with_the_core_dependencies_only():
    folders = [
        "schedules",
        "uncertainty",
        "kernels",
        "losses",
        "memory",
        "nets",
        "data",
        "metrics",
        "recipes",
        "engine",
    ]
    code = "\n".join(["import sys", *(REPORT.format(folder=folder) for folder in folders)])
    found = {}
    for line in run(code):
        folder, names = json.loads(line)
        found[folder] = sorted(set(names) & OPTIONAL)
    assert found == {folder: [] for folder in folders}


@pytest.mark.parametrize("name", ssmis.__all__)
def test_every_public_name_resolves(name):
    assert getattr(ssmis, name) is not None


def test_tools_that_read_types_see_each_public_name_where_it_is_loaded_from():
    tree = ast.parse((ROOT / "ssmis" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert set(seen) == set(ssmis.__all__) - {"__version__"}
    for name, (module, own) in seen.items():
        assert getattr(importlib.import_module(module), own) is getattr(ssmis, name)


def test_dir_lists_the_public_names():
    assert set(dir(ssmis)) == set(ssmis.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ssmis' has no attribute 'Nope'"):
        ssmis.Nope  # noqa: B018
