"""Passwords in addresses are not told."""

import pytest

from recycledb.errors import StoreError, without_password
from recycledb.store import parse_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        ("at http://me:hush@host:8000/v1, and postgresql://you:h@sh@db/x.", "at http://***@host:8000/v1, and postgresql://***@db/x."),
        ("http://hush@host", "http://***@host"),
        ("postgresql://me:hu/sh@host/db", "postgresql://***@host/db"),
        ("write to me@host.example", "write to me@host.example"),
    ],
)  # fmt: skip
def test_users_and_passwords_are_hidden_wherever_an_address_stands(text: str, shown: str) -> None:
    assert without_password(text) == shown


@pytest.mark.parametrize("url", ["postgresql://me:hush@host/db", "mysql://me:hush@host/db", "sqlite://me:hush@host/db"])
def test_a_stores_url_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        parse_url(url)
    assert "hush" not in str(caught.value) and "***@host/db" in str(caught.value)
