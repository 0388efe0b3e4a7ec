# SPDX-License-Identifier: Apache-2.0
"""Missing and broken optional packages are told apart, and each gets a message that helps."""

import json
import sys

import pytest

from ssmis._optional import require


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function that writes an importable module with the given text."""
    written = []

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name)
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_returns_the_module_itself():
    assert require("json", extra="medical", purpose="a test") is json


def test_returns_a_submodule():
    assert require("json.decoder", extra="medical", purpose="a test") is json.decoder


@pytest.mark.parametrize("name", ["a_package_nobody_has", "a_package_nobody_has.part"])
def test_a_missing_package_is_named_with_its_pip_line(name):
    with pytest.raises(ImportError, match=r'2-D encoders needs a_package_nobody_has.*pip install "ssmis\[timm\]"'):
        require(name, extra="timm", purpose="2-D encoders")


def test_a_package_that_lacks_something_is_not_called_missing(module):
    name = module("optional_lacks", "import a_package_nobody_has\n")
    with pytest.raises(ImportError, match="installed but lacks 'a_package_nobody_has'") as caught:
        require(name, extra="timm", purpose="2-D encoders")
    assert "pip install" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    "statement", ["raise OSError('libx.so')", "raise ImportError('libx.so')", "from json import nope"]
)
def test_a_package_that_fails_to_import_chains_the_cause(module, statement):
    name = module("optional_broken", statement + "\n")
    with pytest.raises(ImportError, match="installed but fails to import: ") as caught:
        require(name, extra="timm", purpose="2-D encoders")
    assert caught.value.__cause__ is not None
    assert "pip install" not in str(caught.value)


def test_a_nameless_module_error_is_still_explained(module):
    name = module("optional_nameless", "raise ModuleNotFoundError('gone for good')\n")
    with pytest.raises(ImportError, match="gone for good"):
        require(name, extra="timm", purpose="2-D encoders")
