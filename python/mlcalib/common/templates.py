"""Pages from templates, which are files of a package; what is put into them is escaped."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Return what reads the templates that lie in a package's folder.

    A template that names what it was not given raises ``jinja2.UndefinedError``.

    Args:
        package: e.g. ``mlcalib.report.page``.
        filters: name in templates → function, beside Jinja's own.
    """
    found = Environment(
        loader=PackageLoader(package, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= filters
    found.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # of most scripts half the bytes
    return found
