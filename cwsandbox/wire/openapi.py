"""The OpenAPI 3.1 description of the HTTP resources, built from the models and the table of routes."""

from __future__ import annotations

import enum
import functools
import inspect
import re
import types
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Union, get_args, get_origin

import attrs
from attrs import frozen

from cwsandbox._version import __version__
from cwsandbox.wire.codec import Int64, json_name
from cwsandbox.wire.discovery import (
    AvailableRunner,
    ListAvailableRunnersResponse,
    ListProfilesResponse,
    ProfileSummary,
    RunnerView,
)
from cwsandbox.wire.errors import Code
from cwsandbox.wire.resources import GatewayInfo, ListSandboxesResponse, Sandbox, State, StopSandboxRequest

__all__ = ["ROUTES", "Parameter", "Route", "document"]


@frozen
class Parameter:
    """A query parameter.

    Attributes:
        name: As in the URL.
        type: What it holds; a tuple is a repeated parameter.
        description: What it means.
    """

    name: str
    type: Any
    description: str


@frozen
class Route:
    """One operation.

    Attributes:
        method: The HTTP method.
        path: With path variables in braces.
        name: The operation's id.
        summary: What it does.
        response: The model of the answer; None is an empty object.
        parameters: Its query.
        body: The model of the body; None takes none.
    """

    method: str
    path: str
    name: str
    summary: str
    response: type[Any] | None
    parameters: tuple[Parameter, ...] = ()
    body: type[Any] | None = None


_SANDBOX = "/v1/sandboxes/{sandboxId}"
_PATH_VARIABLE = re.compile(r"\{(\w+)\}")
_PAGING = (
    Parameter("pageSize", int, "How many at most."),
    Parameter("pageToken", str, "The nextPageToken of the page before."),
)
_GPU = Parameter("gpuType", str, "Only those that have this type of GPU.")
_ARCHITECTURE = Parameter("architecture", str, 'Only those of this architecture, such as "amd64".')
_VIEW = Parameter("view", RunnerView, "How much to tell.")

ROUTES = (
    Route(
        "POST",
        "/v1/sandboxes",
        "createSandbox",
        "Create a sandbox; answers when it is accepted.",
        Sandbox,
        (Parameter("requestId", str, "The same id and body again give the first answer, and no second sandbox."),),
        Sandbox,
    ),
    Route(
        "GET",
        "/v1/sandboxes",
        "listSandboxes",
        "List sandboxes, a page at a time.",
        ListSandboxesResponse,
        (
            Parameter("tags", tuple[str, ...], "Only those with all of these tags."),
            Parameter("state", State, "Only those in this state; a terminal one implies showTerminated."),
            Parameter("showTerminated", bool, "Ended ones too, as long as they are remembered."),
            Parameter("runnerIds", tuple[str, ...], "Only those on one of these runners."),
            Parameter("profileIds", tuple[str, ...], "Only those with one of these profiles."),
            *_PAGING,
        ),
    ),
    Route(
        "GET",
        _SANDBOX,
        "getSandbox",
        "Read a sandbox, or wait until it runs or has ended.",
        Sandbox,
        (
            Parameter("waitFor", str, '"running" or "terminal": answer when that is reached or the time is over.'),
            Parameter("timeoutSeconds", float, "How long to wait."),
        ),
    ),
    Route(
        "DELETE",
        _SANDBOX,
        "deleteSandbox",
        "Kill a sandbox at once and forget it.",
        Sandbox,
        (Parameter("allowMissing", bool, "Answer with an empty object if there is none."),),
    ),
    Route(
        "POST",
        _SANDBOX + ":stop",
        "stopSandbox",
        "Stop a sandbox; answers when that is accepted.",
        Sandbox,
        body=StopSandboxRequest,
    ),
    Route(
        "GET",
        "/v1/availableRunners",
        "listAvailableRunners",
        "List what sandboxes can run on, a page at a time; BASIC unless said otherwise.",
        ListAvailableRunnersResponse,
        (
            Parameter("runnerGroupId", str, "Only those of this group."),
            Parameter("profileName", str, "Only those that have this profile."),
            _GPU,
            _ARCHITECTURE,
            Parameter("healthyOnly", bool, "Only those on which sandboxes can be made."),
            _VIEW,
            *_PAGING,
        ),
    ),
    Route(
        "GET",
        "/v1/organizations/{organizationId}/availableRunners/{runnerId}",
        "getAvailableRunner",
        'Read one runner, FULL unless said otherwise; the organization "-" is any.',
        AvailableRunner,
        (_VIEW,),
    ),
    Route(
        "GET",
        "/v1/profiles",
        "listProfiles",
        "List the profiles that sandboxes can have, a page at a time.",
        ListProfilesResponse,
        (_GPU, _ARCHITECTURE, Parameter("runnerId", str, "Only those of this runner."), *_PAGING),
    ),
    Route(
        "GET",
        "/v1/profiles/{profileName}",
        "getProfile",
        "Read one profile.",
        ProfileSummary,
        (Parameter("runnerId", str, "As this runner has it."),),
    ),
    Route("GET", "/v1/gateway", "getGateway", "Who answers.", GatewayInfo),
    Route("POST", "/v1/gateway:shutdown", "shutDownGateway", "End an embedded gateway and its sandboxes.", None),
)
"""All operations but the exec channel, a WebSocket at `/v1/channel`, which OpenAPI has no words for."""


@functools.cache
def document() -> dict[str, Any]:
    """The description; the same dict at every call, not to be changed."""
    schemas: dict[str, Any] = {"Status": _status_schema()}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cwsandbox gateway",
            "version": __version__,
            "description": "Streams (exec, shell, logs, files) use the WebSocket at /v1/channel.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}}},
        "security": [{"apiKey": []}, {}],
    }


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_VARIABLE.findall(route.path)
    ]
    for parameter in route.parameters:
        schema = _schema(parameter.type, schemas)
        parameters.append(
            {"name": parameter.name, "in": "query", "description": parameter.description, "schema": schema}
        )
    answer = _schema(route.response, schemas) if route.response is not None else {"type": "object"}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done.", "content": {"application/json": {"schema": answer}}},
            "default": {
                "description": "An error; the HTTP status follows from the code.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Status"}}},
            },
        },
    }
    if route.body is not None:
        content = {"application/json": {"schema": _schema(route.body, schemas)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Int64: {"type": "string", "format": "int64"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    datetime: {"type": "string", "format": "date-time"},
}


def _schema(cls: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema of a field's type; models become components."""
    if cls in _PLAIN:
        return dict(_PLAIN[cls])
    if get_origin(cls) is tuple:
        return {"type": "array", "items": _schema(get_args(cls)[0], schemas)}
    if get_origin(cls) is Mapping:
        return {"type": "object", "additionalProperties": _schema(get_args(cls)[1], schemas)}
    if get_origin(cls) in {Union, types.UnionType}:
        # Absent and null are the same, so that an optional field is one that is not required.
        return _schema(next(arm for arm in get_args(cls) if arm is not types.NoneType), schemas)
    if cls.__name__ not in schemas:
        schemas[cls.__name__] = {}
        schemas[cls.__name__] = _enum_schema(cls) if issubclass(cls, enum.Enum) else _model_schema(cls, schemas)
    return {"$ref": f"#/components/schemas/{cls.__name__}"}


def _enum_schema(cls: type[enum.Enum]) -> dict[str, Any]:
    return {"type": "string", "description": _summary(cls), "enum": [member.value for member in cls]}


def _model_schema(cls: type[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    attrs.resolve_types(cls)
    fields = attrs.fields(cls)
    return {
        "type": "object",
        "description": _summary(cls),
        "properties": {json_name(field.name): _schema(field.type, schemas) for field in fields},
        "required": [json_name(field.name) for field in fields if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }


def _status_schema() -> dict[str, Any]:
    codes = ", ".join(f"{code.value} {code.name} ({code.http_status})" for code in Code)
    return {
        "type": "object",
        "description": "google.rpc.Status.",
        "properties": {
            "code": {"type": "integer", "description": f"google.rpc.Code, with its HTTP status: {codes}."},
            "message": {"type": "string"},
            "details": {
                "type": "array",
                "description": "google.rpc.ErrorInfo, RetryInfo and BadRequest.",
                "items": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
            },
        },
        "required": ["code", "message"],
    }


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
