"""Field types that several request bodies share.

JSON has types of its own: "5" is no number and 1 is no boolean, so these are strict where pydantic
by default would convert.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic_core import PydanticCustomError

Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Boolean = Annotated[bool, Strict()]

#: A 64-bit seed is what numpy's generators and every client agree on.
Seed = Annotated[int, Strict(), Field(ge=0, lt=1 << 63)]

NOT_TEXT = {
    "audio",
    "document",
    "file",
    "image",
    "image_url",
    "input_audio",
    "input_file",
    "input_image",
    "video",
    "video_url",
}


class Body(BaseModel):
    """A part of a request body. Fields no server knows are let through: clients differ by the
    month."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class WholeBody(Body):
    """A request body; what it has besides is told in the log, for a name may be misspelt."""

    model_config = ConfigDict(extra="allow")

    @property
    def unknown_fields(self) -> frozenset[str]:
        """Return the names that have no effect."""
        return frozenset(self.model_extra or ())


class Answer(BaseModel):
    """A part of a response; what is not set is not sent."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    def json_value(self) -> dict[str, Any]:
        """Return plain JSON values of the fields that were set."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


def _refuse_other_media(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in NOT_TEXT:
        raise PydanticCustomError(
            "unsupported_content",
            "a {kind} part: this server computes the language model only, send text",
            {"kind": kind},
        )
    return part


#: Put before a union of content parts.
TextOnly = BeforeValidator(_refuse_other_media)


def _check_stop(strings: list[str]) -> list[str]:
    if "" in strings:
        raise PydanticCustomError("empty_stop", "an empty stop string would end every answer")
    return strings


StopStrings = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=64), AfterValidator(_check_stop)
]


def stop_strings(given: str | list[str] | None) -> tuple[str, ...]:
    """Return the stop strings of a field that takes none, one or several."""
    return (given,) if isinstance(given, str) else tuple(given or ())


#: A JSON schema, or the arguments of a template: any JSON object.
JsonObject = dict[str, Any]
