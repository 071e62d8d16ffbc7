"""Which gateway is meant."""

from __future__ import annotations

import pytest

from cwsandbox._client.address import EMBEDDED, Address, AddressKind, resolve_address
from cwsandbox.exceptions import CWSandboxError


def http(url: str) -> Address:
    return Address(AddressKind.HTTP, url=url)


def unix(path: str) -> Address:
    return Address(AddressKind.UNIX, path=path)


@pytest.mark.parametrize(
    ("argument", "variable", "defaults", "expected"),
    [
        (None, None, None, EMBEDDED),
        ("", "", "", EMBEDDED),
        ("http://a:1", "http://b:2", "http://c:3", http("http://a:1")),
        (None, "http://b:2", "http://c:3", http("http://b:2")),
        (None, "", "http://c:3", http("http://c:3")),
        (None, None, "http://c:3", http("http://c:3")),
        ("local", "http://b:2", None, EMBEDDED),
        (None, "local", None, EMBEDDED),
        ("https://a.example/", None, None, http("https://a.example")),
        ("https://a.example:443", None, None, http("https://a.example")),
        ("http://a.example:80", None, None, http("http://a.example")),
        ("http://a.example:443", None, None, http("http://a.example:443")),
        ("HTTP://A.Example:8080", None, None, http("http://a.example:8080")),
        ("http://[::1]:8080", None, None, http("http://[::1]:8080")),
        ("unix:///run/x.sock", None, None, unix("/run/x.sock")),
        ("unix:///run/with%20space", None, None, unix("/run/with space")),
    ],
)
def test_the_first_that_is_set_counts(
    argument: str | None, variable: str | None, defaults: str | None, expected: Address
) -> None:
    env = {} if variable is None else {"CWSANDBOX_BASE_URL": variable}
    assert resolve_address(argument, defaults_url=defaults, env=env) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "a.example",
        "a.example:80",
        "localhost",
        "http://",
        "http:///x",
        "http://a/path",
        "http://a:99999",
        "http://a:x",
        "http://a?q=1",
        "http://a/#f",
        "unix://run/x.sock",
        "unix:",
        "unix:///",
        "unix:///" + "x" * 107,
        "unix:///a%00b",
        "Local",
        "http://[::1",
        "http:// a",
    ],
)
def test_what_is_no_address_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):
        resolve_address(url, env={})


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="CWSANDBOX_API_KEY") as caught:
        resolve_address("https://me:hunter2@a.example", env={})
    assert "hunter2" not in str(caught.value)


def test_a_url_that_cannot_be_read_is_not_repeated_as_pythons_own_message_does() -> None:
    with pytest.raises(ValueError, match="https://HOST") as caught:
        resolve_address("https://me:hunter2@ex\N{ACCOUNT OF}mple.com", env={})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hun/ter2@a.example",
        "https://a.example?key=hunter2",
        "https://a.example#hunter2",
        "https//me:hunter2@a.example",
        "unix://me:hunter2@/x",
        "ftp://a.example/?key=hunter2",
    ],
)
def test_a_mistyped_url_is_not_repeated_if_it_may_hold_a_secret(url: str) -> None:
    with pytest.raises(ValueError, match=r"the base URL|a socket's URL") as caught:
        resolve_address(url, env={})
    assert "ter2" not in str(caught.value)


def test_the_hosted_service_is_an_error_that_names_both_ways_out() -> None:
    with pytest.raises(CWSandboxError) as caught:
        resolve_address(env={"CWSANDBOX_API_KEY": "secret"})
    message = str(caught.value)
    assert "CWSANDBOX_BASE_URL" in message
    assert "local" in message
    assert "secret" not in message


def test_an_api_key_with_an_address_is_for_that_address() -> None:
    env = {"CWSANDBOX_API_KEY": "secret", "CWSANDBOX_BASE_URL": "https://a.example"}
    assert resolve_address(env=env) == http("https://a.example")
    assert resolve_address("local", env={"CWSANDBOX_API_KEY": "secret"}) == EMBEDDED


def test_addresses_are_keys() -> None:
    assert len({http("http://a"), http("http://a"), unix("/a"), EMBEDDED, Address(AddressKind.EMBEDDED)}) == 3


def test_addresses_read_well_in_messages() -> None:
    assert [str(a) for a in (EMBEDDED, unix("/a"), http("http://a"))] == [
        "the embedded gateway",
        "unix:///a",
        "http://a",
    ]
