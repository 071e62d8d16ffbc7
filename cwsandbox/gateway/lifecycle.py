"""The states of a sandbox and the only function that moves between them.

    PENDING -> CREATING -> RUNNING -> COMPLETED    the main command ended by itself
                                   -> FAILED       it could not be created, or its box was lost
    any of the three -> TERMINATING -> TERMINATED  a stop, a deletion, the end of its lifetime, or of the gateway

Terminal states are absorbing: whatever is reported later changes nothing.
"""

from __future__ import annotations

import enum
from typing import Final

from cwsandbox.wire.resources import State


class Trigger(enum.Enum):
    """What can happen to a sandbox."""

    CREATE_STARTED = enum.auto()
    BOX_READY = enum.auto()
    CREATE_FAILED = enum.auto()
    STOP_REQUESTED = enum.auto()
    MAIN_EXITED = enum.auto()
    BOX_LOST = enum.auto()
    STOPPED = enum.auto()


TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.TERMINATED})

# A box is ready in PENDING or RUNNING when it is one that survived the gateway before this one.
_MOVES: Final[dict[tuple[State, Trigger], State]] = {
    (State.PENDING, Trigger.CREATE_STARTED): State.CREATING,
    (State.PENDING, Trigger.STOP_REQUESTED): State.TERMINATING,
    (State.PENDING, Trigger.BOX_READY): State.RUNNING,
    (State.PENDING, Trigger.BOX_LOST): State.FAILED,
    (State.CREATING, Trigger.BOX_READY): State.RUNNING,
    (State.CREATING, Trigger.CREATE_FAILED): State.FAILED,
    (State.CREATING, Trigger.STOP_REQUESTED): State.TERMINATING,
    (State.CREATING, Trigger.BOX_LOST): State.FAILED,
    (State.RUNNING, Trigger.BOX_READY): State.RUNNING,
    (State.RUNNING, Trigger.STOP_REQUESTED): State.TERMINATING,
    (State.RUNNING, Trigger.MAIN_EXITED): State.COMPLETED,
    (State.RUNNING, Trigger.BOX_LOST): State.FAILED,
    # A stop that was asked for decides the outcome: what ends afterwards ended because of it.
    (State.TERMINATING, Trigger.CREATE_STARTED): State.TERMINATING,
    (State.TERMINATING, Trigger.BOX_READY): State.TERMINATING,
    (State.TERMINATING, Trigger.STOP_REQUESTED): State.TERMINATING,
    (State.TERMINATING, Trigger.MAIN_EXITED): State.TERMINATING,
    (State.TERMINATING, Trigger.BOX_LOST): State.TERMINATED,
    (State.TERMINATING, Trigger.CREATE_FAILED): State.TERMINATED,
    (State.TERMINATING, Trigger.STOPPED): State.TERMINATED,
}


def next_state(state: State, trigger: Trigger) -> State:
    """Return the state after `trigger`.

    Raises:
        ValueError: The trigger cannot happen in this state: a defect of the caller.
    """
    if state in TERMINAL:
        return state
    try:
        return _MOVES[state, trigger]
    except KeyError:
        raise ValueError(f"{trigger.name} cannot happen in {state.name}") from None
