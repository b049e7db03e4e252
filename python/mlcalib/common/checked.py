"""Values that were read, of the types that were written."""

import json
import re
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


def problems(error: ValidationError) -> str:
    """Say of all values that a user gave and pydantic refused what was given and expected."""
    found: dict[str, list[str]] = {}
    for each in error.errors(include_url=False):
        name, said = ".".join(map(str, each["loc"][:1])), each["msg"]
        if each["type"] == "value_error":
            given, said = "", str(each["ctx"]["error"])
        elif each["type"] == "missing":
            given, said = f"{name} is missing; ", "give it."
        else:
            given = f"{name} is {printable(repr(each['input']))}, expected "
            said = re.sub(r"^Input should be |, (unable to|got) .*$", "", said)
            said = said.replace("less than or equal to", "at most")
            said = said.replace("greater than or equal to", "at least")
        found.setdefault(given, []).append(said)
    sentences = (f"{given}{' or '.join(said)}".rstrip(".") for given, said in found.items())
    return "".join(f"{each}. " for each in sentences).rstrip()


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
