"""Values that were read, of the types that were written."""

import json
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mlcalib.common.errors import printable

T = TypeVar("T")


def as_type(content: Any, kind: type[T]) -> T:
    """Return JSON types as a type of Python, in which no number stands for a text, and so on.

    Args:
        content: what was read.
        kind: the type: a dataclass, a NamedTuple, ``dict[str, int]``, …; fields of an object that
            it does not have are left out.

    Raises:
        ValueError: it is of another type; says where, and what was expected.
    """
    named: Any = kind  # mypy takes no type for hashable
    try:  # as JSON, where an object may stand for a dataclass, and a list for a tuple
        found: T = _adapter(named).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    return found


def first_problem(error: ValidationError) -> str:
    """Return the first of the problems that pydantic found, and where it is."""
    first = error.errors(include_input=False, include_url=False)[0]
    where = printable(".".join(map(str, first["loc"])))
    return f"{where}: {first['msg']}" if where else first["msg"]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
