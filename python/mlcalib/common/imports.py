"""What is done once another library is imported, without importing it."""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def when_imported(module: str, act: Callable[[], None]) -> None:
    """Call ``act`` as soon as a module has been imported, or at once if it is there already.

    Args:
        module: its full name.
        act: is called once, in the import of that module, after its own code has run.
    """
    if module in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Finder(module, act))


class _Finder(MetaPathFinder):
    """Finds one module as Python does, and calls a function when it has run."""

    def __init__(self, module: str, act: Callable[[], None]) -> None:
        self._module = module
        self._act = act

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self._act()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
