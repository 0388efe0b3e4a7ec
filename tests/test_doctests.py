# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings give what they show."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import ssmis

MODULES = ["ssmis", *(found.name for found in pkgutil.walk_packages(ssmis.__path__, "ssmis."))]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def load(name):
    """Import a module, or skip the test if what is missing is no part of this package."""
    try:
        return import_module(name)
    except ImportError as error:
        if (error.name or "ssmis").split(".")[0] == "ssmis":
            raise
        pytest.skip(f"{name} needs {error.name}")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(load(name), optionflags=FLAGS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name}; see the output above"


def test_the_examples_are_found():
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in MODULES for test in finder.find(load(name))]
    assert sum(bool(test.examples) for test in tests) >= 10
