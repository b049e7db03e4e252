"""The base of all options: checked when made, never changed after."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Options that a user gives. Frozen; an option that does not exist is an error, not ignored.

    Raises:
        pydantic.ValidationError: (a ValueError) an option is unknown, missing or of the wrong type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
