"""Plug-ins by name: one file is one plug-in, and the file's name is its registry name."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")
C = TypeVar("C")


def unknown(kind: str, given: str, available: Iterable[str]) -> str:
    """Say that a name is unknown, which one was probably meant, and which there are."""
    names = list(dict.fromkeys(available))
    close = difflib.get_close_matches(given, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown {kind} '{given}'.{hint} Available: {', '.join(names) or 'none'}."


class Registry(Generic[T]):
    """The plug-ins of one kind: classes found by the name of the file they are in.

    A module ``package.some_name`` that decorates a class with ``@registry.register`` is the plug-in
    ``some-name``. It is imported when it is first asked for. Other distributions add plug-ins
    through the entry-point group; a plug-in of the package wins over one of the same name there.

    Args:
        kind: what a plug-in is called in messages, e.g. ``quantizer``.
        package: the package whose modules are plug-ins, e.g. ``mlcalib.quantizers``. Modules called
            ``base``, and those that start with ``_``, are not.
        group: the entry-point group, e.g. ``mlcalib.quantizers``.
    """

    def __init__(self, kind: str, *, package: str, group: str) -> None:
        self._kind = kind
        self._package = package
        self._group = group
        self._plugins: dict[str, type[T]] = {}

    @overload
    def register(self, plugin: str) -> Callable[[type[C]], type[C]]: ...
    @overload
    def register(self, plugin: type[C]) -> type[C]: ...
    def register(self, plugin: Any) -> Any:
        """Register a class under its module's name, or with ``register("name")`` under that name.

        Raises:
            ValueError: another class has the name. (The same class again, as when a notebook cell
                is run twice, replaces the old one.)
        """
        if isinstance(plugin, str):
            return lambda cls: self._add(plugin, cls)
        return self._add(_plugin_name(plugin.__module__.rpartition(".")[2]), plugin)

    def get(self, name: str) -> type[T]:
        """Return the class registered as ``name``, importing its module if need be.

        Raises:
            ValueError: no plug-in has the name, or several distributions claim it.
            ImportError: the plug-in's module cannot be imported, or registers no such name.
        """
        if name not in self._plugins and name in self._modules():
            importlib.import_module(self._modules()[name])
            if name not in self._plugins:
                raise ImportError(
                    f"Module '{self._modules()[name]}' registers no {self._kind} '{name}'; "
                    "decorate its class with @registry.register."
                )
        if name in self._plugins:
            return self._plugins[name]
        found = {point.value: point for point in entry_points(group=self._group, name=name)}
        if len(found) > 1:
            raise ValueError(
                f"The {self._kind} '{name}' is claimed by {' and by '.join(sorted(found))} in the "
                f"entry-point group '{self._group}'; uninstall all but one."
            )
        if not found:
            raise ValueError(unknown(self._kind, name, self.names()))
        return cast("type[T]", next(iter(found.values())).load())

    def names(self) -> list[str]:
        """List every name that ``get`` takes, sorted; imports none of the plug-ins."""
        others = {point.name for point in entry_points(group=self._group)}
        return sorted(others | self._modules().keys() | self._plugins.keys())

    def _modules(self) -> dict[str, str]:
        paths = importlib.import_module(self._package).__path__
        names = (module.name for module in pkgutil.iter_modules(paths))
        return {
            _plugin_name(name): f"{self._package}.{name}"
            for name in names
            if name != "base" and not name.startswith("_")
        }

    def _add(self, name: str, cls: type[C]) -> type[C]:
        old = self._plugins.get(name)
        if old is not None and _origin(old) != _origin(cls):
            raise ValueError(
                f"The {self._kind} '{name}' is already registered by {_origin(old)}; "
                f"{_origin(cls)} needs another name."
            )
        self._plugins[name] = cast("type[T]", cls)
        return cls


def _plugin_name(module: str) -> str:
    return module.replace("_", "-")


def _origin(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
