# SPDX-License-Identifier: Apache-2.0
"""What holds for every registered component, whatever its kind."""

import inspect
import re

import pytest

from ssmis.registry import BANKS, LOSSES, NETS, RECIPES, UNCERTAINTY

TABLES = (NETS, LOSSES, UNCERTAINTY, BANKS, RECIPES)
ENTRIES = [(table, name) for table in TABLES for name in table]
IDS = [f"{table.kind}-{name}" for table, name in ENTRIES]
KINDS = {"logits", "probs", "labels", "mask", "features", "keys", "key_labels", "images"}

each = pytest.mark.parametrize(("table", "name"), ENTRIES, ids=IDS)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_the_names_are_sorted_and_there_are_some(table):
    assert list(table) == sorted(table)
    assert len(table) > 0


@each
def test_a_name_is_snake_case(table, name):
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)


@each
def test_a_factory_has_a_one_line_summary(table, name):
    # `__doc__` and not `inspect.getdoc`, which would find the docstring of `nn.Module`
    lines = inspect.cleandoc(table[name].factory.__doc__ or "").split("\n")
    assert len(lines) == 1 or not lines[1].strip(), f"the summary of {table.kind} {name!r} is longer than a line"
    summary = table[name].summary
    assert summary.endswith("."), f"{table.kind} {name!r}: {summary!r} is no sentence"
    assert not summary.startswith("See "), f"{table.kind} {name!r} points to a docstring that is not there"
    assert not summary.startswith(f"{table[name].factory.__name__}("), "a generated docstring says nothing"


@each
def test_a_factory_takes_its_examples_arguments(table, name):
    entry = table[name]
    bound = inspect.signature(entry.factory).bind_partial(**entry.example.create)  # raises TypeError otherwise
    assert set(entry.example.create) <= set(bound.arguments) | set(bound.kwargs)


@each
def test_an_example_is_consistent(table, name):
    example = table[name].example
    assert set(example.dims) <= {1, 2, 3}
    assert example.dims
    assert set(example.call.values()) <= KINDS
    assert set(example.student) <= set(example.call)
    assert set(example.teacher) <= set(example.call)
    assert not set(example.student) & set(example.teacher)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_says_how_it_is_called_and_what_it_trains(name):
    example = LOSSES[name].example
    assert example.call
    assert example.student
