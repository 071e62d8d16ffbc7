"""Records in other forms: as the resource that clients see, as the text that the store keeps, as pages of a list."""

from __future__ import annotations

import hashlib
import heapq
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import attrs
from attrs import frozen

from cwsandbox.gateway.errors import invalid
from cwsandbox.gateway.lifecycle import TERMINAL
from cwsandbox.gateway.sandbox import Record
from cwsandbox.wire import codec
from cwsandbox.wire.resources import Container, ExposedPort, LimitHold, Sandbox, SandboxSpec, SandboxStatus, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cwsandbox.gateway.params import Query
    from cwsandbox.gateway.sandbox import LiveSandbox

_PAGE_SIZE = 1000
_TIMES = ("create_time", "start_time", "end_time")


def fingerprint(spec: SandboxSpec) -> str:
    """Return what tells a specification from another one, without keeping it: repeated creates are compared by it."""
    return hashlib.sha256(codec.dump(spec)).hexdigest()


def without_secrets(spec: SandboxSpec) -> SandboxSpec:
    """Return the part of a specification that is kept: environment values and file contents only go to the box."""

    def bare(container: Container) -> Container:
        return attrs.evolve(container, environment_variables={}, files=())

    return attrs.evolve(spec, containers=tuple(bare(container) for container in spec.containers))


def to_resource(record: Record) -> Sandbox:
    """Return the record as clients see it."""
    spec = record.spec
    endpoints = () if record.state in TERMINAL else record.endpoints
    return Sandbox(
        sandbox_id=record.sandbox_id,
        spec=spec,
        status=SandboxStatus(
            state=record.state,
            state_reason=record.state_reason,
            create_time=record.create_time,
            start_time=record.start_time,
            end_time=record.end_time,
            exit_code=record.exit_code,
            runner_id=record.runner_id,
            runner_group_id=record.runner_group_id,
            profile_id=record.profile_id,
            limit_holds=record.limit_holds,
            isolation=record.isolation,
            effective_max_lifetime_seconds=spec.max_lifetime_seconds,
            effective_resource_requirements=spec.containers[0].resource_requirements,
            service_address=endpoints[0].address if endpoints else "",
            exposed_ports=endpoints,
            applied_ingress_mode=record.ingress_mode,
            applied_egress_mode=record.egress_mode,
        ),
    )


def to_json(record: Record) -> str:
    """Return the record as the store keeps it."""
    body: dict[str, Any] = attrs.asdict(record, recurse=False)
    body["spec"] = record.spec.to_json()
    body["state"] = record.state.value
    body["endpoints"] = [endpoint.to_json() for endpoint in record.endpoints]
    body["limit_holds"] = {name: hold.value for name, hold in record.limit_holds.items()}
    for name in _TIMES:
        moment: datetime | None = body[name]
        body[name] = moment.isoformat() if moment is not None else None
    return json.dumps(body)


def from_json(text: str) -> Record:
    """Read a record back.

    Raises:
        ValueError: It was written by something else.
    """
    body = json.loads(text)
    try:
        body["spec"] = SandboxSpec.from_json(body["spec"])
        body["state"] = State(body["state"])
        body["endpoints"] = tuple(ExposedPort.from_json(endpoint) for endpoint in body.get("endpoints", ()))
        body["limit_holds"] = {name: LimitHold(hold) for name, hold in body.get("limit_holds", {}).items()}
        for name in _TIMES:
            body[name] = datetime.fromisoformat(body[name]) if body[name] is not None else None
        return Record(**body)
    except (AttributeError, KeyError, TypeError) as problem:
        raise ValueError("a stored record has another form") from problem


@frozen(kw_only=True)
class ListFilter:
    """Which sandboxes a list asks for.

    Attributes:
        tags: All of these.
        state: Only this one.
        show_terminated: Ended ones too; a terminal `state` implies it.
        runner_ids: Any of these; none is no filter.
        profile_ids: Any of these; none is no filter.
        page_size: At most so many, 1000 at the most.
        after: The sequence number that the page before ended with.
    """

    tags: tuple[str, ...] = ()
    state: State | None = None
    show_terminated: bool = False
    runner_ids: tuple[str, ...] = ()
    profile_ids: tuple[str, ...] = ()
    page_size: int = _PAGE_SIZE
    after: int = 0

    @classmethod
    def from_query(cls, query: Query) -> Self:
        """Read the parameters of a list.

        Raises:
            StatusError: INVALID_ARGUMENT.
        """
        return cls(
            tags=query.texts("tags"),
            state=_state(query.text("state")),
            show_terminated=query.flag("showTerminated"),
            runner_ids=query.texts("runnerIds"),
            profile_ids=query.texts("profileIds"),
            page_size=int(query.number("pageSize", default=0, most=_PAGE_SIZE)) or _PAGE_SIZE,
            after=_position(query.text("pageToken")),
        )

    def matches(self, record: Record) -> bool:
        """Return whether the list wants this sandbox."""
        if record.sequence <= self.after:
            return False
        if self.state is not None:
            if record.state is not self.state:
                return False
        elif record.state in TERMINAL and not self.show_terminated:
            return False
        spec = record.spec
        return (
            set(self.tags) <= set(spec.tags)
            and (not self.runner_ids or record.runner_id in self.runner_ids)
            and (not self.profile_ids or record.profile_id in self.profile_ids)
        )


def page(sandboxes: Iterable[LiveSandbox], wanted: ListFilter) -> tuple[list[LiveSandbox], str]:
    """Return the first sandboxes that match, oldest first, and the token of what follows ("" if nothing does)."""
    matching = (sandbox for sandbox in sandboxes if wanted.matches(sandbox.record))
    found = heapq.nsmallest(wanted.page_size + 1, matching, key=lambda sandbox: sandbox.record.sequence)
    if len(found) <= wanted.page_size:
        return found, ""
    del found[-1]
    return found, f"after-{found[-1].record.sequence}"


def _state(name: str) -> State | None:
    if not name:
        return None
    try:
        state = State(name)
    except ValueError:
        raise invalid(f"state must be one of {', '.join(state.value for state in State)}") from None
    return state if state is not State.UNSPECIFIED else None


def _position(token: str) -> int:
    prefix, _, number = token.partition("-")
    if not token:
        return 0
    if prefix != "after" or not number.isascii() or not number.isdigit() or len(number) > 18:
        raise invalid("pageToken is not one that this gateway gave")
    return int(number)
