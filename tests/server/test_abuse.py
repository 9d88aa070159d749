"""What no request can do: RELIABILITY 5, row 35. Each is refused with one shape of answer, nothing is written, memory stays."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from autointerp.server import serving, timed_http
from autointerp.server.app import create_app
from autointerp.server.errors import shown_error
from autointerp.server.guards import bodies, crowds
from autointerp.server.guards.bodies import DEEPEST, Bodies, is_deep
from autointerp.server.guards.crowds import Crowds
from autointerp.server.sessions import COOKIE
from autointerp.server.settings import ServerSettings
from sae_core.errors import AutointerpError, DiskFullError, MissingFileError, StoreError, StoreUnavailableError
from tests.server.asking import SAMPLES, Home, ServedRoute, bearer, digest_of_tree, make_home, served_routes
from tests.server.real_server import RawAnswer, RealServer, parsed, plant, read_answer, served_in_thread, until_refused
from tests.server.served_world import RUN_ID, SOURCE

CANARY = "canary-3f1d9c"
MIB = 2**20


@pytest.fixture(scope="module")
def home(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    found = make_home(served_run, tmp_path_factory.mktemp("home"))
    plant(found.folder, CANARY)
    plant(found.folder / "mine", CANARY)
    (found.folder / "mine" / "dictionary" / "link.parquet").symlink_to(found.folder / "secret.txt")
    (found.folder / ".server" / "link").parent.mkdir(exist_ok=True)
    (found.folder / ".server" / "link").symlink_to(found.folder)
    return found


@pytest.fixture(scope="module")
def server(home: Home) -> Iterator[RealServer]:
    with RealServer(["--home", str(home.folder)]) as found:
        for path in (
            f"/api/runs/{RUN_ID}/latents",
            f"/api/runs/{RUN_ID}/pictures/f1-rate",
        ):  # it makes its columns once
            answer = found.send(f"GET {path} HTTP/1.1\n{shown(home)}")
            assert answer.status == 200, answer
        yield found


def shown(home: Home, who: str = "root") -> str:
    return f"Authorization: Bearer {home.secrets[who]}"


@pytest.fixture
def nothing_written(home: Home, server: RealServer) -> Iterator[None]:
    before = digest_of_tree(home.folder)
    yield
    assert digest_of_tree(home.folder) == before


def assert_refused(answer: RawAnswer, *statuses: int) -> None:
    """4xx, of the one shape, with nothing of the server in it."""
    assert answer.status in statuses if statuses else 400 <= answer.status < 500, answer
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    if answer.headers["content-type"] == "application/json":
        said = json.loads(answer.body)
        assert set(said) == {"status", "title", "detail"}
        assert said["status"] == answer.status
    assert_says_nothing(answer.body)


def assert_says_nothing(body: bytes) -> None:
    for one in (CANARY, "Traceback", "SELECT ", "site-packages", "SQLite format", "/tmp/", ".py"):
        assert one.encode() not in body, body[:500]


SPELLINGS = (
    "..", "../..", "..%2f..%2fsecret.txt", "%2e%2e", "%2e%2e%2fsecret.txt", "%2e%2e/secret.txt", "..%252fsecret.txt",
    "%252e%252e%252fsecret.txt", "..%255c..%255csecret.txt", "..\\secret.txt", "..%5csecret.txt", "....//secret.txt",
    "..;/secret.txt", ";/../secret.txt", "#", "#/../secret.txt", "%23/../secret.txt", "?/../secret.txt", "%3f..%2fsecret.txt",
    "/etc/passwd", "%2fetc%2fpasswd", "//etc/passwd", "%2f%2fetc%2fpasswd", "file:///etc/passwd", "C:%5cwindows%5cwin.ini",
    "%00", "secret.txt%00.parquet", f"{RUN_ID}%00", "%0a", "%0d%0aset-cookie:x", "%c0%ae%c0%ae/secret.txt", "%ff%fe", "%e2%80%ae",
    "link.parquet", "../secret.txt", "../autointerp.db", "..%2fautointerp.db", "_manifest.json/..", "./../secret.txt", "~root", "%7e",
    "-1", "9" * 40, "1e5", "0x5", "5;x", "5%20x", "x" * 3000, "'%20OR%201=1--", "*", "%25", "{run_id}", "$HOME",
)  # fmt: skip


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])
def test_no_spelling_of_a_path_parameter_leads_anywhere(server: RealServer, home: Home, every: int) -> None:
    """Every path parameter of every route that reads, on one connection as browsers keep it; the quick test takes each spelling in turn."""
    app = create_app(ServerSettings(home=home.folder))
    routes = [one for one in served_routes(app) if one.method == "GET" and "{" in one.path]
    places = [(route, name) for route in routes for name in re.findall(r"\{([^}:]+)", route.path)]
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    asked = 0
    for number, (route, name) in enumerate(places):
        for spelling in SPELLINGS[number % every :: every]:
            url = route.url(SAMPLES | {name: spelling})
            line.putrequest("GET", url)
            line.putheader("Authorization", f"Bearer {home.secrets['root']}")
            line.endheaders()
            found = line.getresponse()
            body, asked = found.read(), asked + 1
            assert_says_nothing(body)
            if spelling.startswith("?"):  # that is no part of the path: it asks for what stands above it
                continue
            headers = {key.lower(): value for key, value in found.getheaders()}
            assert "location" not in headers, url
            assert_refused(RawAnswer(found.status, headers, body), 400, 404, 405, 414, 422)
    line.close()
    assert asked > 1_000 / every


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static//etc/passwd",
                                  "/static/%2fetc%2fpasswd", "/static/..%5capp.py", "/static/%00", "/static/..%252fapp.py", "/static/"])  # fmt: skip
def test_static_files_are_those_of_their_folder(server: RealServer, path: str) -> None:
    assert_refused(server.send(f"GET {path} HTTP/1.1"), 400, 404)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("target", ["//evil.example", "//evil.example/", "//evil.example/runs", "/\\evil.example", "///evil.example/%2e%2e",
                                    "http://evil.example/", "/runs//evil.example/"])  # fmt: skip
def test_nothing_leads_to_another_host(server: RealServer, home: Home, target: str) -> None:
    answer = server.send(f"GET {target} HTTP/1.1\n{shown(home)}")
    assert "location" not in answer.headers
    assert b"evil.example" not in answer.body
    assert_refused(answer, 400, 404, 421)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421), ("127.0.0.1.evil.example:{port}", 421), ("localhost:1", 421), ("127.0.0.1", 421), ("0.0.0.0:{port}", 421),
        ("169.254.169.254", 421), ("[::ffff:169.254.169.254]:{port}", 421), ("127.0.0.1:{port}@evil.example", 400), ("", 400), ("[::1", 400),
        ("localhost:{port}:{port}", 400), ("localhost:-1", 400), (None, 400), ("127.0.0.1:{port}", 200), ("LOCALHOST:{port}", 200),
        ("localhost.:{port}", 200), ("[::1]:{port}", 200), ("[::ffff:127.0.0.1]:{port}", 200),
    ],
)  # fmt: skip
def test_only_its_own_names_are_answered(server: RealServer, home: Home, host: str | None, status: int) -> None:
    named = host.format(port=server.port) if host is not None else None
    head = f"GET /api/runs HTTP/1.1\n{shown(home)}"
    if not named:
        head = head.replace("HTTP/1.1", "HTTP/1.0") if named is None else head + "\nHost: "
    answer = server.send(head, host=named or None)
    assert answer.status == status, answer
    if status != 200:
        assert_refused(answer, status)


def test_two_host_headers_are_none(server: RealServer, home: Home) -> None:
    answer = server.send(f"GET /api/runs HTTP/1.1\n{shown(home)}\nHost: evil.example")
    assert answer.status == 400


def test_a_given_name_is_answered(tmp_path: Path) -> None:
    settings = ServerSettings(home=tmp_path, hosts=("labels.example.org", "other.example.org:8443"))
    with TestClient(create_app(settings)) as client:
        for host, status in (("labels.example.org", 200), ("labels.example.org:99", 200), ("other.example.org:8443", 200),
                             ("other.example.org", 421), ("example.org", 421)):  # fmt: skip
            assert client.get("/login", headers={"host": host}).status_code == status, host


REVIEW = f"/runs/{RUN_ID}/latents/{SOURCE}/5/review"
FORM = b"action=reject&by=mallory"


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "application/json"]
)
@pytest.mark.parametrize(
    "origin", ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Origin: null", "X-Nothing: 1"]
)
def test_another_sites_form_changes_nothing(kind: str, origin: str, home: Home, server: RealServer) -> None:
    cookie = log_in(server, home)
    for path in (REVIEW, f"/api{REVIEW}", "/logout", "/login", f"/runs/{RUN_ID}/pause", f"/runs/{RUN_ID}/export"):
        body = b'{"action":"reject","by":"m"}' if "json" in kind else FORM
        head = f"POST {path} HTTP/1.1\n{origin}\nCookie: {cookie}\nContent-Type: {kind}\nContent-Length: {len(body)}"
        assert_refused(server.send(head, body), 403)
        bogus = head + "\nAuthorization: Bearer bogus"
        assert_refused(server.send(bogus, body), 401)


_COOKIES: dict[int, str] = {}


def log_in(server: RealServer, home: Home) -> str:
    """The cookie of a browser that has shown root's token; one for a server, since each login is written."""
    if server.port not in _COOKIES:
        body = f"token={home.secrets['root']}".encode()
        answer = server.send(
            "POST /login HTTP/1.1\nSec-Fetch-Site: same-origin\nContent-Type: application/x-www-form-urlencoded\n"
            f"Content-Length: {len(body)}",
            body,
        )
        assert answer.status == 303
        assert answer.headers["set-cookie"].startswith(COOKIE)
        _COOKIES[server.port] = answer.headers["set-cookie"].partition(";")[0]
    return _COOKIES[server.port]


@pytest.fixture(scope="module", autouse=True)
def _logged_in_before_anything_is_compared(server: RealServer, home: Home) -> None:
    log_in(server, home)


@pytest.mark.usefixtures("nothing_written")
def test_a_body_without_end_is_refused_and_not_kept(server: RealServer, home: Home) -> None:
    """10 GB in chunks, sent until nobody takes them."""
    before = server.rss_bytes
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.port), 10) as line:
            line.sendall(
                f"POST /api{REVIEW} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n{shown(home)}\r\nContent-Type: application/json\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
            )
            part = b"10000\r\n" + b"[" * 65_536 + b"\r\n"
            sent = until_refused(line, part, 10 * 2**30)
        assert sent < 32 * MIB
    assert server.rss_bytes - before < 16 * MIB
    said = f"POST /api{REVIEW} HTTP/1.1\n{shown(home)}\nContent-Type: application/json\nContent-Length: {10 * 2**30}"
    assert_refused(server.send(said), 413)
    large = b'"' + b"x" * (MIB + 1) + b'"'
    assert_refused(server.send(said.replace(str(10 * 2**30), str(len(large))), large), 413)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("text", [b"[" * 10_000 + b"]" * 10_000, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"[" * 100_000, b'"' * 99_999,
                                  b'"' + b'\\"' * 200_000, b"\xff\xfe[", b'{"\\ud800": 1}', b'{"action": "\\ud800"}', b"", b"nul", b"NaN",
                                  b'{"action":"accept","by":NaN}', b"1" * 5_000, b'{"action":"accept","by":"a","by":["b"]}'])  # fmt: skip
def test_json_that_is_none_or_too_deep_is_refused(server: RealServer, home: Home, text: bytes) -> None:
    began = time.monotonic()
    head = f"POST /api{REVIEW} HTTP/1.1\n{shown(home)}\nContent-Type: application/json\nContent-Length: {len(text)}"
    assert_refused(server.send(head, text), 400, 422)
    assert time.monotonic() - began < 2


@given(
    st.recursive(
        st.none() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    st.integers(0, 90),
)
def test_depth_is_that_of_the_value(value: Any, around: int) -> None:
    for _ in range(around):
        value = [value]

    def depth(one: Any) -> int:
        inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert is_deep(json.dumps(value).encode()) is (depth(value) > DEEPEST)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /api/runs?" + "x" * 9_000 + " HTTP/1.1", 414),
        ("GET /api/" + "x" * 3_000 + " HTTP/1.1", 414),
        ("GET /api/runs HTTP/1.1\nX-Long: " + "x" * 13_000, 431),
        ("GET /api/runs HTTP/1.1\n" + "\n".join(f"X-{n}: 1" for n in range(101)), 431),
        ("GET /api/runs%00 HTTP/1.1", 400),
        ("TRACE /api/runs HTTP/1.1", 405),
        ("BREW /api/runs HTTP/1.1", 405),
        ("DELETE /api/runs HTTP/1.1", 405),
        ("OPTIONS /api/runs HTTP/1.1\nOrigin: http://evil.example\nAccess-Control-Request-Method: POST", 405),
    ],
)
def test_heads_of_any_kind_get_one_shape(server: RealServer, home: Home, head: str, status: int) -> None:
    first, _, rest = head.partition("\n")
    answer = server.send(f"{first}\n{shown(home)}" + (f"\n{rest}" if rest else ""))
    assert_refused(answer, status)
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_head_without_end_is_refused(server: RealServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as line:
        line.sendall(b"GET / HTTP/1.1\r\n")
        sent = until_refused(line, b"X-A: " + b"x" * 1_000 + b"\r\n", 100 * MIB)
    assert sent < 8 * MIB
    assert server.send("GET /login HTTP/1.1").status == 200


def test_a_websocket_is_no_way_in(server: RealServer) -> None:
    answer = server.send(
        "GET /api/runs HTTP/1.1\nUpgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13"
    )
    assert answer.status == 401


def test_answers_do_not_wait_for_the_network_to_be_quiet(tmp_path: Path) -> None:
    """asyncio turns Nagle's algorithm off where it sees that a socket is TCP; with it every answer takes 40 ms."""
    with serving._listen(ServerSettings(home=tmp_path, port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A server in a thread, whose patience is a third of a second; its port."""
    monkeypatch.setattr(timed_http, "HEAD_S", 0.3)
    monkeypatch.setattr(bodies, "BODY_S", 0.3)
    app = create_app(ServerSettings(home=tmp_path / "home"))
    with served_in_thread(app) as port:
        yield port


@pytest.mark.parametrize("slow", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A"])
def test_whoever_is_slow_with_a_head_is_left(hasty: int, slow: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty), 5) as line:
        began = time.monotonic()
        line.sendall(slow)
        assert line.recv(1) == b""
        assert 0.2 < time.monotonic() - began < 3


def test_bytes_now_and_then_do_not_help(hasty: int) -> None:
    with socket.create_connection(("127.0.0.1", hasty), 5) as line:
        sent, began = 0, time.monotonic()
        try:
            for sign in b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 100:
                line.sendall(bytes([sign]))
                sent += 1
                time.sleep(0.05)
        except OSError:
            pass
        assert sent < 40
        assert time.monotonic() - began < 3


def test_whoever_is_slow_with_a_body_is_told(hasty: int) -> None:
    with socket.create_connection(("127.0.0.1", hasty), 5) as line:
        line.sendall(
            f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{hasty}\r\nSec-Fetch-Site: none\r\nContent-Length: 100\r\n\r\ntok".encode()
        )
        assert_refused(read_answer(line), 408)


def test_a_connection_that_is_kept_answers_again_and_is_left_when_idle(hasty: int) -> None:
    with socket.create_connection(("127.0.0.1", hasty), 5) as line:
        for _ in range(4):
            line.sendall(f"GET /api/me HTTP/1.1\r\nHost: 127.0.0.1:{hasty}\r\n\r\n".encode())
            data = b""
            while not data.endswith(b"}"):
                data += line.recv(65_536)
            assert parsed(data).status == 200
            time.sleep(0.15)
        began = time.monotonic()
        assert line.recv(1) == b""
        assert time.monotonic() - began < 3


def scope(client: str = "192.0.2.7") -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/api/x", "query_string": b"", "headers": [], "client": (client, 1), "scheme": "http", "server": ("127.0.0.1", 80)}  # fmt: skip


def test_one_address_has_a_bounded_number_of_requests_at_a_time() -> None:
    async def tried() -> tuple[list[int], list[int]]:
        release = asyncio.Event()

        async def app(_scope: Any, _receive: Any, send: Any) -> None:
            await release.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        guard = Crowds(app, crowds.address_of, 3)

        async def ask(client: str) -> int:
            sent: list[Message] = []

            async def send(message: Message) -> None:
                sent.append(message)

            async def receive() -> Message:
                return {"type": "http.request"}

            await guard(scope(client), receive, send)
            return int(sent[0]["status"])

        first = [asyncio.create_task(ask("192.0.2.7")) for _ in range(5)]
        other = asyncio.create_task(ask("192.0.2.8"))
        await asyncio.sleep(0.01)
        release.set()
        statuses = [*await asyncio.gather(*first), await other]
        again = [await ask("192.0.2.7") for _ in range(4)]
        assert not guard._under_way
        return statuses, again

    statuses, again = asyncio.run(tried())
    assert sorted(statuses) == [200] * 4 + [429] * 2
    assert statuses[-1] == 200
    assert again == [200] * 4


def test_bytes_are_counted_as_they_come_whatever_was_said() -> None:
    """A body that says it has five bytes and has more; one that is exactly at the bound."""

    async def ask(parts: list[bytes], said: bytes) -> tuple[int, int, bytes]:
        left, got, sent = list(parts), [b""], []

        async def receive() -> Message:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: Message) -> None:
            sent.append(message)

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            got[0] = (await receive())["body"]
            await send({"type": "http.response.start", "status": 200, "headers": []})

        asked = scope() | {"headers": [(b"content-length", said)]}
        await Bodies(app, 1_024)(asked, receive, send)
        return sent[0]["status"], len(left), got[0]

    assert asyncio.run(ask([b"x" * 512] * 2, b"5")) == (200, 0, b"x" * 1_024)
    status, left, got = asyncio.run(ask([b"x" * 512] * 9, b"5"))
    assert (status, left, got) == (413, 6, b"")
    assert asyncio.run(ask([b"x"], b"1025"))[0] == 413
    deep = b"[" * DEEPEST + b"]" * DEEPEST
    assert asyncio.run(ask([deep], b""))[0] == 200
    assert asyncio.run(ask([b"[", deep, b"]"], b""))[0] == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StoreUnavailableError("the store 'postgresql+psycopg://u:pw@db.internal/x' does not answer"), 503),
        (StoreError("the folder '/srv/secret/runs/a' belongs to another run"), 409),
        (MissingFileError("there is no file '/srv/secret/a.bin'"), 409),
        (DiskFullError("no room on /srv/secret"), 507),
        (AutointerpError("it is at sqlite:////srv/secret/a.db, or ~/secret/x, or C:\\secret\\x\\y"), 400),
    ],
)
def test_no_answer_says_where_things_lie(error: AutointerpError, status: int) -> None:
    found = shown_error(error)
    assert found[0] == status
    for one in ("secret", "db.internal", "pw", "sqlite"):
        assert one not in found[1]


def test_a_sentence_that_has_no_path_stays() -> None:
    said = "give a figure between 0 and 1, such as 'precision_low>=0.7', text/plain or EleutherAI/pythia-70m."
    assert shown_error(AutointerpError(said)) == (400, said)


def test_what_breaks_the_server_says_nothing_and_is_guarded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(ServerSettings(home=tmp_path))

    @app.get("/api/broken")
    def broken() -> None:
        raise RuntimeError(f"{CANARY} in /srv/x.py SELECT ")

    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.get("/api/broken")
    assert_says_nothing(answer.content)
    assert answer.status_code == 500
    assert set(answer.json()) == {"status", "title", "detail"}
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert CANARY in caplog.text


def test_a_part_that_became_a_link_is_not_there(served_run: Path, tmp_path: Path) -> None:
    home = make_home(served_run, tmp_path / "home")
    part = next((home.folder / "mine" / "dictionary").glob("*.parquet"))
    part.unlink()
    part.symlink_to(plant(tmp_path, CANARY))
    with TestClient(create_app(ServerSettings(home=home.folder)), base_url="http://127.0.0.1") as client:
        answer = client.get(f"/api/runs/{RUN_ID}/dictionary/{part.name}", headers=bearer(home.secrets["ann"]))
    assert answer.status_code == 404
    assert CANARY not in answer.text


def test_every_route_that_changes_something_refuses_another_site(home: Home) -> None:
    with TestClient(create_app(ServerSettings(home=home.folder)), base_url="http://127.0.0.1") as client:
        found: list[ServedRoute] = served_routes(client.app)  # type: ignore[arg-type]
        changing = [route for route in found if route.method not in ("GET", "HEAD")]
        assert len(changing) > 5
        same = {"origin": "http://127.0.0.1"}
        client.post("/login", data={"token": home.secrets["root"]}, headers=same)
        for route in changing:
            for headers in ({}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site", **same}):
                assert client.request(route.method, route.url(), headers=headers).status_code == 403, route
