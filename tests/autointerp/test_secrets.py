"""Passwords from files: what a server is logged in to with, and what messages never show."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sqlalchemy import make_url

from autointerp.cluster.secrets import with_password
from autointerp.shown_url import without_password
from autointerp.store import open_store
from autointerp.store.models import Base
from sae_core.errors import ConfigError
from tests.cli_process import run_cli
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://u:pw@h/d?password=s3cr3t", "postgresql+psycopg://u:***@h/d?password=***"),
        ("postgresql://u@h/d?connect_timeout=5&sslpassword=s3cr3t&sslmode=require", "postgresql://u@h/d?connect_timeout=5&sslpassword=***&sslmode=require"),
        ("redis://h:6379/0?PassWord=s%26cr3t&db=1 is away", "redis://h:6379/0?PassWord=***&db=1 is away"),
        ("s3://b/p?access_key=AK&secret=s3cr3t&region=eu", "s3://b/p?access_key=***&secret=***&region=eu"),
        ("redis://h/0?pass%77ord=s3cr3t", "redis://h/0?pass%77ord=***"),
        ("redis://:p@s3cr3t@h/0", "redis://:***@h/0"),
        ("postgresql://u@h/d?passfile=/run/pw&sslkey=/run/key&keepalives=1", None),
        ("is this what you want? key words = none", None),
    ],
)  # fmt: skip
def test_urls_are_shown_without_passwords_and_keys(text: str, shown: str | None) -> None:
    assert without_password(text) == (text if shown is None else shown)


def test_a_password_among_a_urls_parameters_is_noted_and_shown_nowhere(tmp_path: Path) -> None:
    """A run is submitted and looked at by URLs with passwords as parameters; then folder, tables and messages are searched."""
    password = "Hidden-Par4meter"
    for name in ("subject", "coder"):
        (tmp_path / name).mkdir()
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "run.toml").write_text(
        'subject.model = "subject"\ncorpus.path = "corpus.txt"\n[[coders]]\npath = "coder"\n[[endpoints]]\nkind = "scripted"\n'
        'name = "judge"\nreplies = ["yes"]\n[[explainers]]\nkind = "max_activating"\n'
    )
    with RedisServer(password=password) as redis, PostgresServer(password=password) as postgres:
        store_url = f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/postgres?password={password}&sslpassword={password}"
        environment = {
            **os.environ,
            "AUTOINTERP_STORE__URL": store_url,
            "AUTOINTERP_BROKER__URL": f"redis://127.0.0.1:{redis.port}/0?password={password}",
            "AUTOINTERP_ARTEFACTS__URL": f"nothing-known://bucket/place?secret={password}",
        }
        wrong = {**environment, "AUTOINTERP_STORE__URL": store_url.replace("/postgres?", "/missing?")}
        usual = {**environment, "AUTOINTERP_BROKER__URL": redis.url}
        out = str(tmp_path / "out")
        commands = [
            (["submit", str(tmp_path / "run.toml"), "--out", out], environment, 0),
            (["status", out], environment, 0),
            (["status"], wrong, 2),
            (["fetch", out, "--out", str(tmp_path / "here")], environment, 2),
            (["doctor"], environment, 2),
            (["doctor"], usual, None),
            (["doctor"], {**wrong, "AUTOINTERP_BROKER__URL": redis.url}, 2),
        ]
        said = ""
        for arguments, around, code in commands:
            done = run_cli(arguments, around)
            assert code is None or done.returncode == code, (arguments, done.stdout, done.stderr)
            said += done.stdout + done.stderr
        assert "wrong    settings: the broker's URL has a password among its parameters" in said
        assert "ok       broker: " in said
        assert password not in said
        note = (tmp_path / "out" / "run.json").read_text()
        assert "password=***" in note
        assert password not in note
        store = open_store(store_url)
        with store.reading() as connection:
            for table in Base.metadata.sorted_tables:
                assert password not in str(connection.execute(table.select()).all()), table.name
        store.close()
