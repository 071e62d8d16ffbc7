from __future__ import annotations

import json
import re
from typing import Any

from cwsandbox.wire.openapi import ROUTES, document
from cwsandbox.wire.resources import State


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        found = {node["$ref"]} if "$ref" in node else set()
        return found.union(*map(_references, node.values()))
    return set().union(*map(_references, node)) if isinstance(node, list) else set()


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    description = json.loads(json.dumps(document()))
    names = {reference.rpartition("/")[2] for reference in _references(description)}
    assert names == set(description["components"]["schemas"])


def test_every_route_is_described_once() -> None:
    operations = [operation for path in document()["paths"].values() for operation in path.values()]
    assert len(operations) == len(ROUTES) == len({operation["operationId"] for operation in operations})


def test_path_variables_are_declared() -> None:
    for path, operations in document()["paths"].items():
        for operation in operations.values():
            declared = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert declared == set(re.findall(r"{(\w+)}", path))


def test_schemas_say_what_the_codec_enforces() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["State"]["enum"] == [state.value for state in State]
    assert schemas["SandboxSpec"]["required"] == ["containers"]
    assert schemas["SandboxSpec"]["additionalProperties"] is False
    assert schemas["Container"]["properties"]["environmentVariables"] == {
        "type": "object",
        "additionalProperties": {"type": "string"},
    }
    assert schemas["FileMount"]["properties"]["content"]["contentEncoding"] == "base64"
    assert schemas["Gpu"]["properties"]["count"] == {"type": "string", "format": "int64"}
    assert schemas["SandboxStatus"]["properties"]["exitCode"] == {"type": "integer"}


def test_answers_are_the_models() -> None:
    create = document()["paths"]["/v1/sandboxes"]["post"]
    reference = {"$ref": "#/components/schemas/Sandbox"}
    assert create["requestBody"]["content"]["application/json"]["schema"] == reference
    assert create["responses"]["200"]["content"]["application/json"]["schema"] == reference
