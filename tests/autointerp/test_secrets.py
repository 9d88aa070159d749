"""Passwords from files: what a server is logged in to with, and what messages never show."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import make_url

from autointerp.cluster.secrets import with_password
from sae_core.errors import ConfigError
from tests.servers import PostgresServer, RedisServer

HARD = "p@ss:wörd/%41#?&[]+"


def _file(folder: Path, content: bytes) -> Path:
    path = folder / "password"
    path.write_bytes(content)
    return path


def test_a_password_of_all_characters_logs_in_to_both_servers(tmp_path: Path) -> None:
    import psycopg
    import redis

    path = _file(tmp_path, HARD.encode() + b"\n")
    with RedisServer(password=HARD) as server:
        url = with_password(f"redis://127.0.0.1:{server.port}/3", path)
        with redis.Redis.from_url(url) as client:
            assert client.ping()
    with PostgresServer(password=HARD) as postgres:
        url = with_password(f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/postgres?connect_timeout=5", path)
        given = make_url(url)
        assert given.query == {"connect_timeout": "5"}
        with psycopg.connect(
            host=given.host, port=given.port, user=given.username, password=given.password, dbname=given.database
        ) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_one_line_break_at_the_end_is_no_part_of_it(tmp_path: Path, ending: bytes) -> None:
    url = with_password("redis://user@host:6379/0", _file(tmp_path, b" a b " + ending))
    parts = urlsplit(url)
    assert (parts.username, unquote(parts.password or ""), parts.port) == ("user", " a b ", 6379)


def test_without_a_file_the_url_stays() -> None:
    assert with_password("redis://host/0", None) == "redis://host/0"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"secret\nsecret\n", "more than one line"),
        (b"secret\x00", "more than one line"),
        (b"secret" * 1000, "more than one line"),
        (b"secret\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_holds_no_password_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    path = tmp_path / "password" if content is None else _file(tmp_path, content)
    with pytest.raises(ConfigError) as raised:
        with_password("redis://host/0", path)
    assert told in str(raised.value)
    assert str(path) in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["redis://:old-secret@host/0", "postgresql+psycopg://user:old-secret@host/base", "sqlite:///x"]
)
def test_a_url_that_takes_no_password_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        with_password(url, _file(tmp_path, b"secret"))
    assert "secret" not in str(raised.value)
