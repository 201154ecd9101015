"""Typed parameters of the flows, as the UI's form and the command line show them.

Profile and task are lists to choose from. What a form changes becomes overrides of the profile, and
`mg3d.params.resolve` makes one file of both, which every step is passed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema

from mg3d import paths


def profiles() -> list[str]:
    """Params files of the project: the top-level one and those under params/."""
    return [str(paths.PARAMS), *map(str, sorted(Path("params").glob("*.yaml")))]


class _Offered:
    """Lists the profiles in the schema, which is written in the project's folder."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": profiles()}


#: A complete params file. The command line takes any; the UI and the API take the project's.
Profile = Annotated[Path, _Offered()]

#: ``section.key``: value, instead of the profile's.
Overrides = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]


def given(overrides: Mapping[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """Overrides, and over them the form's own fields that are filled: ``section__key=value``."""
    filled = {key: value for key, value in fields.items() if value not in (None, [])}
    return dict(overrides or {}) | {
        key.replace("__", ".", 1): value for key, value in filled.items()
    }
