"""What the sections of a config are made of: numbers with a range, and no key that is not there."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _no_bool(value: object) -> object:
    """Python counts True as 1; whoever writes ``epochs: true`` means something else."""
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Positive = Annotated[Int, Field(ge=1)]
NonNegative = Annotated[Int, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def as_written(value: object) -> str:
    """As YAML has it, or had it before it became a bool."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "null" if value is None else str(value)
