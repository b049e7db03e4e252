"""Packages that only parts of mlcalib need."""

import importlib
from typing import Any


def optional(module: str, extra: str, need: str) -> Any:
    """Import a module of a package that mlcalib does not require.

    Args:
        module: e.g. ``pyarrow.parquet``.
        extra: the extra of mlcalib that installs it.
        need: what needs it, for the message.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{need} needs {package}, which is not installed; run: pip install {package} (or "
            f"install mlcalib with the extra '{extra}')."
        ) from error
