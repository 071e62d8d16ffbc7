from __future__ import annotations

import signal

import pytest

from cwsandbox.wire.signals import is_signal_name, signal_name, signal_number


def test_every_signal_of_this_host_has_a_name_that_leads_back() -> None:
    for number in range(1, signal.NSIG):
        if number in signal.valid_signals():
            name = signal_name(number)
            assert is_signal_name(name), name
            assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIGTERM", "term", "TERM ", "9", "RTMIN+0", "RTMIN+100", "RTMIN+", "TERM\n"])
def test_other_spellings_are_no_names(name: str) -> None:
    assert not is_signal_name(name)
    with pytest.raises(ValueError):
        signal_number(name)


@pytest.mark.parametrize("name", ["RTMIN+99", "EMT"])
def test_names_that_this_host_has_no_number_for_are_value_errors(name: str) -> None:
    assert is_signal_name(name)
    with pytest.raises(ValueError):
        signal_number(name)
