import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from pydantic import ValidationError

from mlcalib.common.config import Config
from mlcalib.common.registry import Registry, unknown


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package 'plugs' of four modules and one sub-package; returns its registry."""
    folder = tmp_path / "plugs"
    (folder / "big_one").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text(
        "from mlcalib.common.registry import Registry\n"
        "registry = Registry('plug', package='plugs', group='test.plugs')\n"
    )
    plugin = "from plugs.base import registry\n@registry.register\nclass Plug: pass\n"
    (folder / "small_one.py").write_text(plugin)
    (folder / "big_one" / "__init__.py").write_text(plugin)
    (folder / "empty.py").write_text("")
    (folder / "_helper.py").write_text("raise RuntimeError('helpers are not plug-ins')\n")
    monkeypatch.syspath_prepend(tmp_path)
    from plugs.base import registry

    yield registry
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugs"]:
        del sys.modules[name]


def with_entry_points(monkeypatch, *points):
    def entry_points(**wanted):
        return EntryPoints(points).select(**wanted)

    monkeypatch.setattr("mlcalib.common.registry.entry_points", entry_points)


def test_name_is_module_name_with_dashes_and_import_is_lazy(package):
    assert package.names() == ["big-one", "empty", "small-one"]
    assert "plugs.small_one" not in sys.modules
    assert package.get("small-one").__module__ == "plugs.small_one"
    assert package.get("big-one").__module__ == "plugs.big_one"


def test_explicit_name():
    registry = Registry("plug", package="mlcalib.languages", group="none")

    @registry.register("other")
    class Plug:
        pass

    assert registry.get("other") is Plug
    assert "other" in registry.names()


def test_same_class_again_replaces_and_another_class_is_refused():
    registry = Registry("plug", package="mlcalib.languages", group="none")

    def cell():
        @registry.register
        class Plug:
            pass

        return Plug

    cell()
    assert cell() is registry.get("test-registry")
    with pytest.raises(ValueError, match=r"plug 'test-registry' is already registered by .*Plug"):

        @registry.register
        class Other:
            pass


def test_unknown_name_offers_the_nearest(package):
    with pytest.raises(ValueError) as error:
        package.get("smal-one")
    assert str(error.value) == (
        "Unknown plug 'smal-one'. Did you mean 'small-one'? Available: big-one, empty, small-one."
    )
    assert unknown("plug", "x", []) == "Unknown plug 'x'. Available: none."


@pytest.mark.parametrize("name", ["base", "_helper", "small_one", "os.path"])
def test_only_plugin_modules_are_imported(package, name):
    with pytest.raises(ValueError, match=f"Unknown plug '{name}'"):
        package.get(name)


def test_module_that_registers_nothing(package):
    with pytest.raises(ImportError, match=r"'plugs.empty' registers no plug 'empty'; decorate"):
        package.get("empty")


def test_entry_points_come_after_the_package(package, monkeypatch):
    with_entry_points(
        monkeypatch,
        EntryPoint("third", "fractions:Fraction", "test.plugs"),
        EntryPoint("small-one", "fractions:Fraction", "test.plugs"),
        EntryPoint("elsewhere", "fractions:Fraction", "other.group"),
    )
    assert package.get("third").__name__ == "Fraction"
    assert package.get("small-one").__name__ == "Plug"
    assert package.names() == ["big-one", "empty", "small-one", "third"]


def test_entry_point_claimed_twice(package, monkeypatch):
    with_entry_points(
        monkeypatch, EntryPoint("x", "a:A", "test.plugs"), EntryPoint("x", "b:B", "test.plugs")
    )
    with pytest.raises(ValueError, match=r"plug 'x' is claimed by a:A and by b:B"):
        package.get("x")


def test_config_is_frozen_and_knows_its_options():
    class Options(Config):
        bits: int = 4

    with pytest.raises(ValidationError, match=r"bit\n.*Extra inputs"):
        Options(bit=3)
    with pytest.raises(ValidationError, match="frozen"):
        Options().bits = 3
