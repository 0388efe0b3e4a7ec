# SPDX-License-Identifier: Apache-2.0
"""The registry: names, errors worth reading, first-use loading, and real entry-point plugins."""

import os
import subprocess
import sys
import textwrap
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmis.registry import BANKS, LOSSES, NETS, RECIPES, UNCERTAINTY, Example, Registry

ROOT = Path(__file__).parents[1]
names = st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=6, unique=True)


def distribution(folder: Path, name: str, group: str, points: dict[str, str]) -> None:
    """Write the metadata an installer would leave behind for a plugin distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(f"{point} = {value}" for point, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")


def factory_named(name: str):
    def factory(*args, **kwargs):
        return args, kwargs

    factory.__qualname__ = name
    return factory


@given(names)
def test_names_come_sorted_and_each_finds_its_own_factory(drawn):
    table = Registry("loss")
    factories = {name: factory_named(name) for name in drawn}
    for name, factory in factories.items():
        assert table.register(name)(factory) is factory
    assert list(table) == sorted(drawn)
    assert len(table) == len(drawn)
    assert all(name in table and table[name].factory is factories[name] for name in drawn)
    assert all(table[name].name == name for name in drawn)


@given(st.lists(st.integers()), st.dictionaries(st.text(min_size=1, max_size=5), st.integers(), max_size=3))
def test_arguments_pass_through_untouched(args, kwargs):
    table = Registry("loss")
    table.register("echo")(factory_named("echo"))
    assert table.create("echo", *args, **kwargs) == (tuple(args), kwargs)


def test_a_factory_may_have_an_argument_called_name():
    table = Registry("net")
    table.register("echo")(factory_named("echo"))
    assert table.create("echo", name="resnet18") == ((), {"name": "resnet18"})


def test_errors_of_a_factory_are_not_swallowed():
    table = Registry("loss")

    @table.register("strict")
    def strict(*, smooth: float) -> float:
        return smooth

    with pytest.raises(TypeError, match="smoth"):
        table.create("strict", smoth=1.0)


def test_a_taken_name_is_an_error_that_names_both_owners():
    table = Registry("loss")
    table.register("dice")(factory_named("first"))
    with pytest.raises(ValueError, match=r"loss 'dice' is already registered by .*first; .*second needs another name"):
        table.register("dice")(factory_named("second"))
    assert table["dice"].factory.__qualname__ == "first"


def test_a_reloaded_module_replaces_its_own_entry():
    table = Registry("loss")
    old, new = factory_named("dice"), factory_named("dice")
    table.register("dice")(old)
    table.register("dice", example=Example(student=("logits",)))(new)
    assert table["dice"].factory is new
    assert table["dice"].example.student == ("logits",)
    assert len(table) == 1


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    table = Registry("loss")
    for name in ("soft_dice", "dice_ce", "kl_rectified_ce"):
        table.register(name)(factory_named(name))
    with pytest.raises(ValueError, match=r"unknown loss 'soft_dise'; did you mean 'soft_dice'.*dice_ce, kl_rect"):
        table.create("soft_dise")
    with pytest.raises(ValueError, match=r"unknown loss 'zzz' \(registered: dice_ce, kl_rectified_ce, soft_dice\)"):
        table["zzz"]
    assert "zzz" not in table


def test_the_default_example_is_empty_and_frozen():
    example = Example()
    assert example.dims == (2, 3)
    assert not example.create
    assert not example.call
    with pytest.raises(FrozenInstanceError):
        example.dims = (2,)


def soft_example():
    """Overlap of two maps."""


def test_the_summary_is_the_first_line_or_the_first_line_of_the_function_it_points_to():
    class Plain:
        """Sum of squares.

        Args: none.
        """

    class Pointer:
        """See `soft_example`."""

    class Lost:
        """See `no_such_function`."""

    class Mute:
        pass

    table = Registry("loss")
    for factory in (Plain, Pointer, Lost, Mute):
        table.register(factory.__name__.lower())(factory)
    assert table["plain"].summary == "Sum of squares."
    assert table["pointer"].summary == "Overlap of two maps."
    assert table["lost"].summary == "See `no_such_function`."
    assert table["mute"].summary == ""


def test_a_callable_object_can_be_a_factory():
    class Maker:
        def __call__(self) -> int:
            return 7

    table = Registry("loss")
    table.register("seven")(Maker())
    assert table.create("seven") == 7


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes a package `name` with a table and components on a temporary import path."""

    def write(name: str, body: str) -> Registry:
        (tmp_path / f"{name}_table.py").write_text(
            f"from ssmis.registry import Registry\nTABLE = Registry('loss', {name!r})\n"
        )
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"from {name}_table import TABLE\n\n@TABLE.register('own')\ndef own():\n    return 'own'\n"
            + textwrap.dedent(body)
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        return __import__(f"{name}_table").TABLE

    yield write
    for name in [name for name in sys.modules if name.startswith("registry_case_")]:
        del sys.modules[name]


def test_components_are_loaded_on_first_use(package):
    table = package("registry_case_lazy", "")
    assert "registry_case_lazy" not in sys.modules
    assert list(table) == ["own"]
    assert "registry_case_lazy" in sys.modules


def test_a_failed_load_is_reported_each_time_and_can_be_repaired(package, tmp_path):
    table = package("registry_case_broken", "raise RuntimeError('half way')\n")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="half way"):
            list(table)
    source = tmp_path / "registry_case_broken" / "__init__.py"
    source.write_text(source.read_text().replace("raise RuntimeError('half way')", "repaired = True  # longer"))
    assert list(table) == ["own"]


def test_a_broken_plugin_is_named_in_a_warning_and_spoils_nothing(package, tmp_path):
    name = "registry_case_plugins"
    table = package(name, "")
    (tmp_path / "registry_case_good.py").write_text(
        f"from {name}_table import TABLE\n\n@TABLE.register('foreign')\ndef foreign():\n    return 'foreign'\n"
    )
    (tmp_path / "registry_case_bad.py").write_text("import a_module_nobody_has\n")
    (tmp_path / "registry_case_thief.py").write_text(
        f"from {name}_table import TABLE\n\n@TABLE.register('own')\ndef own():\n    return 'stolen'\n"
    )
    points = {"a_bad": "registry_case_bad", "b_thief": "registry_case_thief", "c_good": "registry_case_good:foreign"}
    distribution(tmp_path, "acme", name, points)
    with pytest.warns(UserWarning, match="failed to load") as caught:
        assert list(table) == ["foreign", "own"]
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "'a_bad' (registry_case_bad)" in messages[0]
    assert "a_module_nobody_has" in messages[0]
    assert "'b_thief'" in messages[1]
    assert "already registered" in messages[1]
    assert table.create("own") == "own"
    assert table.create("foreign") == "foreign"


def test_plugins_are_all_loaded_even_where_warnings_are_errors(package, tmp_path):
    name = "registry_case_errors"
    table = package(name, "")
    (tmp_path / "registry_case_fine.py").write_text(
        f"from {name}_table import TABLE\n\n@TABLE.register('fine')\ndef fine():\n    return 'fine'\n"
    )
    distribution(tmp_path, "acme", name, {"a": "registry_case_absent", "z": "registry_case_fine"})
    with pytest.raises(UserWarning, match="registry_case_absent"):
        list(table)
    assert list(table) == ["fine", "own"]


def test_an_installed_plugin_shows_up_among_the_losses(tmp_path):
    (tmp_path / "acme_losses.py").write_text(
        textwrap.dedent(
            '''
            from torch import nn
            from ssmis.registry import LOSSES

            class Acme(nn.Module):
                """A loss of another package."""
                def __init__(self, *, scale=1.0):
                    super().__init__()
                    self.scale = scale
                def forward(self, logits):
                    return self.scale * logits.square().mean()

            LOSSES.register("acme")(Acme)
            '''
        )
    )
    distribution(tmp_path, "acme", "ssmis.losses", {"acme": "acme_losses", "gone": "acme_gone"})
    code = """
        import sys, warnings
        from ssmis.registry import LOSSES
        assert "acme_losses" not in sys.modules
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "acme" in LOSSES and len(LOSSES) > 1
        assert any("'gone' (acme_gone)" in str(w.message) for w in caught), caught
        assert LOSSES.create("acme", scale=2.0).scale == 2.0
    """
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("table", "group"),
    [
        (NETS, "ssmis.nets"),
        (LOSSES, "ssmis.losses"),
        (UNCERTAINTY, "ssmis.uncertainty"),
        (BANKS, "ssmis.memory"),
        (RECIPES, "ssmis.recipes"),
    ],
)
def test_every_table_loads_its_package_and_entry_point_group(table, group):
    assert table.package == group
