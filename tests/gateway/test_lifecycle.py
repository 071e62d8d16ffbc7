"""The table of states."""

from __future__ import annotations

import itertools

import pytest

from cwsandbox.gateway.lifecycle import TERMINAL, Trigger, next_state
from cwsandbox.wire.resources import State

P, C, R, E = State.PENDING, State.CREATING, State.RUNNING, State.TERMINATING
DONE, FAILED, TERMINATED = State.COMPLETED, State.FAILED, State.TERMINATED

# state: (CREATE_STARTED, BOX_READY, CREATE_FAILED, STOP_REQUESTED, MAIN_EXITED, BOX_LOST, STOPPED); None cannot happen.
TABLE = {
    P: (C, R, None, E, None, FAILED, None),
    C: (None, R, FAILED, E, None, FAILED, None),
    R: (None, R, None, E, DONE, FAILED, None),
    E: (E, E, TERMINATED, E, E, TERMINATED, TERMINATED),
    DONE: (DONE,) * 7,
    FAILED: (FAILED,) * 7,
    TERMINATED: (TERMINATED,) * 7,
}


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(TABLE, Trigger)))
def test_every_state_and_trigger(state: State, trigger: Trigger) -> None:
    expected = TABLE[state][list(Trigger).index(trigger)]
    if expected is None:
        with pytest.raises(ValueError, match="cannot happen"):
            next_state(state, trigger)
    else:
        assert next_state(state, trigger) is expected


def test_terminal_states_are_absorbing() -> None:
    assert {next_state(state, trigger) for state in TERMINAL for trigger in Trigger} == TERMINAL


def test_a_stop_always_leads_to_an_end() -> None:
    for state in (P, C, R):
        assert next_state(next_state(state, Trigger.STOP_REQUESTED), Trigger.STOPPED) is TERMINATED
