"""What OpenAPI says of the paths: their answers, refusals and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel

from samadapt.serving.answers import FORMS

DESCRIPTION = "Trained segmentation and classification models of samadapt. Not a medical device."


class Refused(BaseModel):
    """Why a request was refused, in a sentence."""

    error: str


class Health(BaseModel):
    """Whether the server can answer."""

    status: Literal["ok"]


class ClassOf(BaseModel):
    """A class: its number in label maps, its name, and the colour that the page gives it."""

    value: int
    name: str
    colour: str | None


class ModelOf(BaseModel):
    """A model, what it reads and how it answers."""

    name: str
    task: Literal["segmentation", "classification"]
    classes: list[ClassOf]
    several_classes: bool
    channels: list[str]
    files: int
    pictures: bool
    modality: str | None
    encoder: str | None
    head: str
    heads: int
    outputs: list[str]
    saliency: bool
    model_sha256: str


class Models(BaseModel):
    """All of them."""

    models: list[ModelOf]


_FORMS = list(dict.fromkeys(name for table in FORMS.values() for name in table))
_HELP = "; ".join(
    f"{name} ({task}): {form.help}" for task, table in FORMS.items() for name, form in table.items()
)
ModelName = Annotated[str | None, Query(description="Name of a model; may be left out where there is one.")]
OutputName = Annotated[
    str, Query(description=f"Form of the answer. {_HELP}", json_schema_extra={"enum": _FORMS})
]


def with_models(schema: dict[str, Any], files: Mapping[str, int]) -> dict[str, Any]:
    """OpenAPI with the models of this server: their names, one of which must be given where there are several.

    Args:
        files: of each model, how many files it reads of a scan.
    """
    for method in (each for path in schema["paths"].values() for each in path.values()):
        for parameter in method.get("parameters", ()):
            if parameter["name"] == "model":
                parameter["schema"] = {"type": "string", "enum": list(files)}
                parameter["required"] = len(files) > 1
        if "requestBody" in method:
            form = method["requestBody"]["content"]["multipart/form-data"]["schema"]
            form["properties"]["files"]["maxItems"] = max(files.values())
    return schema


Responses = dict[int | str, dict[str, Any]]
_REASONS = {
    400: "The form cannot be read.",
    401: "The token is missing or wrong.",
    403: "The request comes from another address.",
    404: "There is no such model.",
    408: "The upload took too long.",
    413: "The upload or the scan is too large.",
    415: "The body is no multipart form.",
    422: "The files cannot be used, or a parameter is wrong.",
    429: "So many requests are taken already; try again after the seconds of Retry-After.",
    499: "The client left.",
    500: "A mistake of the server's own.",
    503: "The server has no memory for this scan now, or stops; try again after the seconds of Retry-After.",
    504: "The answer took too long.",
}


def _refused(*statuses: int) -> Responses:
    return {status: {"model": Refused, "description": _REASONS[status]} for status in statuses}


REFUSED = _refused(401, 403)
HEALTH = _refused(503)
_ASKED = _refused(400, 404, 408, 413, 415, 422, 429, 500, 503, 504)
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FILES = ("application/gzip", "application/octet-stream", "application/dicom", "image/png")
_ABOUT = {
    "Samadapt-Answer": {
        "description": "With files: the same that output=json answers, as JSON in ASCII.",
        "schema": {"type": "string"},
    }
}
ANSWERED: Responses = {
    200: {
        "description": "The answer in the form that was asked for.",
        "headers": _ABOUT,
        "content": {**dict.fromkeys(_FILES, _BINARY), "application/json": {"schema": {"type": "object"}}},
    },
    **_ASKED,
}
SHOWN: Responses = {
    200: {"description": "The scan.", "content": dict.fromkeys(("application/gzip", "image/png"), _BINARY)},
    **_ASKED,
}
COUNTED: Responses = {
    200: {"description": "The counts.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
_FORM = {
    "type": "object",
    "required": ["files"],
    "additionalProperties": False,
    "properties": {
        "files": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "One image file; one for each channel (CASE_0000, CASE_0001, ...); or one zip of a DICOM series.",
        }
    },
}
UPLOADED: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
}
SECURED: dict[str, Any] = {"security": [{"token": []}]}
