"""``python -m autointerp.llm.server``: prints its base URL and serves until it is killed."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from autointerp.llm.protocol import Capability
from autointerp.llm.server.answers import PlainAnswerer
from autointerp.llm.server.faults import load_script
from autointerp.llm.server.running import LLMServer
from sae_core.errors import AutointerpError


async def _serve(server: LLMServer) -> None:
    await server.start()
    print(server.url, flush=True)
    listening = server.http.listening
    assert listening is not None
    await listening.wait_closed()
    if server.http.errors:
        raise server.http.errors[0]


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m autointerp.llm.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 for a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="time from a request to its answer")
    parser.add_argument("--answer", default=None, help="text to answer with where no JSON schema is asked")
    parser.add_argument("--script", type=Path, default=None, help="JSON file with a list of faults")
    parser.add_argument("--ledger", type=Path, default=None, help="file that gets one JSON line a call")
    parser.add_argument("--max-concurrency", type=int, default=None, help="answer 429 above so many requests at once")
    parser.add_argument("--most-tokens", type=int, default=None, help="longest prompt and answer")
    parser.add_argument("--tokenizer", default=None, help="tokenizer.json to count tokens by")
    parser.add_argument("--model", action="append", default=None, help="name of a model that it has; test by default")
    parser.add_argument(
        "--without", action="append", default=[], choices=[str(c) for c in Capability], help="what it cannot do"
    )
    options = parser.parse_args()
    try:
        server = LLMServer(
            PlainAnswerer() if options.answer is None else PlainAnswerer(options.answer),
            faults=load_script(options.script) if options.script is not None else (),
            ledger=options.ledger,
            latency_s=options.latency_ms / 1000,
            max_concurrency=options.max_concurrency,
            models=tuple(options.model or ["test"]),
            capabilities=[c for c in Capability if str(c) not in options.without],
            most_tokens=options.most_tokens,
            tokenizer=options.tokenizer,
            port=options.port,
        )
        asyncio.run(_serve(server))
    except (AutointerpError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
