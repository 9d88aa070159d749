"""A batch provider on this machine's loopback, which follows a script and counts what each request was paid for.

Files, batches, results and errors have the shapes of OpenAI's documentation. Each batch plays the next :class:`Play`. A client
whose key is ``pid-N`` can be killed at any of the ``EVENTS``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

EVENTS = ("uploaded", "created", "polled", "downloading")


@dataclass
class Play:
    """What becomes of one batch."""

    status: str = "completed"
    polls: int = 1
    """Looks at it before it ends."""
    shuffled: bool = True
    """Whether its lines come back in reverse."""
    answered: int | None = None
    """How many of its first requests are worked; None for all."""
    refused: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Requests (from 0) that end in the error file, with status and code."""
    silent: set[int] = field(default_factory=set)
    """Requests about which neither file says anything."""
    twice: set[int] = field(default_factory=set)
    """Requests with two lines, the second of them another answer."""
    strangers: int = 0
    """Lines about requests that nobody made."""
    garbage: set[int] = field(default_factory=set)
    """Requests whose line is cut off in the middle."""
    complaints: list[dict[str, Any]] = field(default_factory=list)
    """Why it failed."""
    made: Callable[[], web.Response] | None = None
    """What is answered to its creation, after it was made, in the place of the batch."""
    unmade: Callable[[], web.Response] | None = None
    """What is answered to its creation, and it is not made."""


class BatchServer:
    """Runs in a thread of its own as a context manager."""

    def __init__(self, plays: list[Play] | None = None, answer: Callable[[dict[str, Any]], str] | None = None) -> None:
        """``answer``: the text that answers a request's body, by default one that says what was asked."""
        self.plays = plays or []
        self.answer = answer or (lambda body: f"answer to {body['messages'][-1]['content']}")
        self.finish: Callable[[str], str] = lambda question: "stop"
        """Why the model stopped, by question."""
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.paid: Counter[str] = Counter()
        """Times that each question was worked."""
        self.seen: Counter[str] = Counter()
        """Calls by what they are."""
        self.headers: set[str] = set()
        """Names of all headers that came, in small letters."""
        self.kill_at = ""
        self._scripts: dict[str, Play] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.base_url = ""

    @web.middleware
    async def _watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.headers |= {name.lower() for name in request.headers}
        response: web.StreamResponse = await handler(request)
        return response

    def __enter__(self) -> BatchServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        app = web.Application(client_max_size=2**28, middlewares=[self._watch])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_delete("/v1/files/{id}", self._delete)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._retrieve)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def _event(self, name: str, request: web.Request) -> None:
        self.seen[name] += 1
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.kill_at == name and key.startswith("pid-"):
            self.kill_at = ""
            os.kill(int(key.removeprefix("pid-")), signal.SIGKILL)
            time.sleep(0.05)

    async def _chat(self, request: web.Request) -> web.Response:
        """What probing asks, at once."""
        self.seen["chats"] += 1
        return web.json_response(_completion(self.answer(await request.json())))

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        self.seen["files"] += 1
        name = f"file-{self.seen['files']}"
        self.files[name] = form["file"].file.read()  # type: ignore[union-attr]
        self._event("uploaded", request)
        return web.json_response({"id": name, "object": "file", "purpose": "batch", "status": "processed"})

    async def _delete(self, request: web.Request) -> web.Response:
        if self.files.pop(request.match_info["id"], None) is None:
            return web.json_response({"error": {"message": "No such File object"}}, status=404)
        self.seen["deleted"] += 1
        return web.json_response({"id": request.match_info["id"], "object": "file", "deleted": True})

    async def _create(self, request: web.Request) -> web.Response:
        data = await request.json()
        play = self.plays.pop(0) if self.plays else Play()
        if play.unmade is not None:
            return play.unmade()
        name = f"batch_{len(self.batches)}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": data["endpoint"],
            "completion_window": data["completion_window"],
            "input_file_id": data["input_file_id"],
            "metadata": data["metadata"],
            "created_at": int(time.time()),
            "status": "validating",
        }
        self._scripts[name] = play
        self._event("created", request)
        if play.made is not None:
            return play.made()
        return web.json_response(self.batches[name])

    async def _list(self, request: web.Request) -> web.Response:
        """Newest first, two a page, so that paging is needed."""
        self.seen["listed"] += 1
        names = list(self.batches)[::-1]
        after = request.query.get("after")
        names = names[names.index(after) + 1 :] if after else names
        data = [self.batches[name] for name in names[:2]]
        more = len(names) > 2
        return web.json_response(
            {"object": "list", "data": data, "has_more": more, "last_id": names[1] if more else None}
        )

    async def _retrieve(self, request: web.Request) -> web.Response:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return web.json_response({"error": {"message": "No such batch", "code": None}}, status=404)
        play = self._scripts[batch["id"]]
        play.polls -= 1
        self._event("polled", request)
        if play.polls < 0 and batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            self._finish(batch, play)
        elif play.polls >= 0:
            batch["status"] = "in_progress"
        return web.json_response(batch)

    def _finish(self, batch: dict[str, Any], play: Play) -> None:
        batch["status"] = play.status
        if play.status == "failed":
            batch["errors"] = {"object": "list", "data": play.complaints}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines), "custom ids must differ"
        output: list[bytes] = []
        errors: list[bytes] = []
        for number, line in enumerate(lines):
            if play.answered is not None and number >= play.answered:
                lost = {"code": f"batch_{play.status}", "message": "This request could not be executed in time."}
                errors.append(_line(line["custom_id"], None, lost))
            elif number in play.refused:
                status, code = play.refused[number]
                body = {"error": {"message": "bad key sk-abc" if status == 401 else "not this one", "code": code}}
                errors.append(_line(line["custom_id"], {"status_code": status, "body": body}, None))
            elif number not in play.silent:
                question = line["body"]["messages"][-1]["content"]
                self.paid[question] += 1
                output.append(_answer(line["custom_id"], self.answer(line["body"]), self.finish(question)))
                if number in play.garbage:
                    output[-1] = output[-1][:-30]
                if number in play.twice:
                    output.append(_answer(line["custom_id"], "answer to another question"))
        output += [_answer(f"stranger-{number}", "answer to ?") for number in range(play.strangers)]
        if play.shuffled and not play.twice:
            output.reverse()
        for kind, content in (("output", output), ("error", errors)):
            if content:
                name = f"file-{kind}-{batch['id']}"
                self.files[name] = b"\n".join(content) + b"\n"
                batch[f"{kind}_file_id"] = name

    async def _content(self, request: web.Request) -> web.StreamResponse:
        content = self.files.get(request.match_info["id"])
        if content is None:
            return web.json_response({"error": {"message": "No such File object"}}, status=404)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        self._event("downloading", request)
        await response.write(content[len(content) // 2 :])
        return response


def _answer(custom_id: str, text: str, finish: str = "stop") -> bytes:
    return _line(custom_id, {"status_code": 200, "request_id": "r", "body": _completion(text, finish)}, None)


def _completion(text: str, finish: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }


def _line(custom_id: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    return json.dumps({"id": "batch_req_1", "custom_id": custom_id, "response": response, "error": error}).encode()
