"""Times extraction against its floor, segment by segment in one process, and its memory at two lengths of the corpus.

    python -m sae_core.bench.extraction '{"num_latents": 4096, "num_tokens": 1000000}'   one measurement, as JSON

:func:`bench_extraction` runs each measurement in a process of its own, since a process's peak of memory is that of all it did.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sae_core.errors import ConfigError
from sae_core.partial import ExtractionSettings

if TYPE_CHECKING:
    from sae_core.extraction import Extractor

SEGMENT_TOKENS, LEAST_SEGMENTS = 131_072, 8
"""Tokens after which floor and extraction take turns, fewer where there would not be so many turns."""
FULL_POOL_WINDOWS = 1_000
"""So few that the pool is full at a quarter of the tokens: from then on memory must not grow."""


@dataclass(frozen=True)
class Measurement:
    """What one process measures."""

    num_latents: int
    num_tokens: int
    repeats: int = 1
    """Extractions of the whole corpus, each from nothing."""
    floor_from: float = 0.0
    """Share of the corpus after which the floor takes its turns; 1 for none."""
    pool_windows: int = ExtractionSettings.pool_windows
    """Windows of a side in the pool."""
    device: str = "cpu"


class Segment(NamedTuple):
    """Seconds of one segment."""

    tokens: int
    extraction: float
    floor: float
    """0 where the floor did not take its turn."""


def ratio(segments: Sequence[Segment], merge_s: float = 0.0, merged_tokens: int = 0) -> float:
    """Time of extraction over that of the floor, over the segments that have both.

    ``merge_s``, which is spent once for ``merged_tokens`` tokens, counts in proportion to the segments' tokens.
    """
    both = [segment for segment in segments if segment.floor > 0]
    share = sum(segment.tokens for segment in both) / merged_tokens if merged_tokens else 0.0
    return (sum(segment.extraction for segment in both) + share * merge_s) / sum(segment.floor for segment in both)


def last_quarter(segments: Sequence[Segment]) -> list[Segment]:
    """The segments that begin in the last quarter of the tokens."""
    total, before, found = sum(segment.tokens for segment in segments), 0, []
    for segment in segments:
        if 4 * before >= 3 * total:
            found.append(segment)
        before += segment.tokens
    return found


def measure(what: Measurement) -> dict[str, Any]:
    """Do one measurement in this process."""
    import torch

    from sae_core.bench.floor import fastest_floor
    from sae_core.bench.machine import machine
    from sae_core.bench.world import CONTEXT_LENGTH, make_world
    from sae_core.encoding import Replica
    from sae_core.extraction import Extractor
    from sae_core.merging import merge_partials
    from sae_core.records import Source

    settings = ExtractionSettings(pool_windows=what.pool_windows)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        world = make_world(what.num_latents, what.num_tokens, folder / "corpus", device=what.device)
        replicas = [Replica(world.subject, [world.attached])]
        Extractor(replicas, world.corpus, settings).extract(range(min(16, world.corpus.num_contexts)))  # compiles
        floor = fastest_floor(world) if what.floor_from < 1 else None
        source = Source("bench", "bench", "0", "layers.2", "bench", "bench", what.num_latents)
        runs, merges, size = [], [], 0
        for repeat in range(what.repeats):
            extractor = Extractor(replicas, world.corpus, settings)
            segments: list[Segment] = []
            paths: list[Path] = []
            for contexts in _segments(world.corpus.num_contexts):
                path = folder / f"{len(paths)}.safetensors"
                turn = floor is not None and contexts.start >= what.floor_from * world.corpus.num_contexts
                floor_first = turn and (repeat + len(paths)) % 2 == 0
                # who goes first changes, so that a machine that slows down favours neither
                floor_s = _seconds(floor.run, contexts) if floor is not None and floor_first else 0.0
                took = _seconds(_extract, extractor, contexts, path)
                if floor is not None and turn and not floor_first:
                    floor_s = _seconds(floor.run, contexts)
                paths.append(path)
                segments.append(Segment(len(contexts) * CONTEXT_LENGTH, took, floor_s))
            store = folder / "store"
            merges.append(_seconds(merge_partials, paths, source, settings, world.corpus, store))
            size = sum(path.stat().st_size for path in store.glob("exemplars-*"))
            runs.append(segments)
        return {
            "what": asdict(what),
            "runs": runs,
            "merge_s": merges,
            "exemplar_bytes": size,
            "peak_rss_mib": _peak_rss_mib(),
            "floor": None if floor is None else {"batch_tokens": floor.batch_tokens, "tile_tokens": floor.tile_tokens},
            "limits": None if floor is None else _limits(floor, world.corpus.num_contexts, folder),
            "threads": torch.get_num_threads(),
            "machine": machine(what.device),
        }


def _segments(contexts: int) -> Iterator[range]:
    from sae_core.bench.world import CONTEXT_LENGTH

    size = max(1, min(SEGMENT_TOKENS // CONTEXT_LENGTH, contexts // LEAST_SEGMENTS))
    for start in range(0, contexts, size):
        yield range(start, min(contexts, start + size))


def _extract(extractor: Extractor, contexts: range, path: Path) -> None:
    (partial,) = extractor.extract(contexts)
    partial.save(path)


def _seconds(work: Callable[..., object], *args: object) -> float:
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def _limits(floor: Any, num_contexts: int, folder: Path) -> dict[str, float]:
    """Tokens a second of parts of the work alone, and bytes a second of the disk."""
    import torch

    from sae_core.bench.world import CONTEXT_LENGTH

    contexts = range(min(num_contexts, 256))
    tokens = len(contexts) * CONTEXT_LENGTH
    hidden = torch.randn(floor.tile_tokens, floor.width, device=floor.world.subject.device)
    room = floor.encode(hidden, None, False)
    times = max(1, tokens // len(hidden))

    def encode_many() -> None:
        for _ in range(times):
            floor.encode(hidden, room, False)
        if hidden.device.type == "cuda":
            torch.cuda.synchronize(hidden.device)

    product = times * len(hidden) / _seconds(encode_many)
    block, path = os.urandom(1 << 24), folder / "disk"

    def without_selection() -> None:
        floor.run(contexts, selects=False)

    def write() -> None:
        with path.open("wb") as file:
            for _ in range(16):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())

    return {
        "forward_and_encode_tokens_per_second": tokens / _seconds(without_selection),
        "encoder_product_tokens_per_second": product,
        "encoder_product_gflops": product * 2 * floor.width * floor.world.attached.coder.num_latents / 1e9,
        "disk_write_mb_per_second": 16 * len(block) / 1e6 / _seconds(write),
    }


def _peak_rss_mib() -> float:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def in_child(what: Measurement) -> dict[str, Any]:
    """Do one measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "sae_core.bench.extraction", json.dumps(asdict(what))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result["runs"] = [[Segment(*segment) for segment in run] for run in result["runs"]]
    return result


def bench_extraction(
    latents: Sequence[int],
    num_tokens: int,
    repeats: int,
    steady_tokens: int,
    device: str = "cpu",
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure each number of latents: the ratio over ``num_tokens`` and, unless it is 0, in the last quarter of ``steady_tokens``."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device is {device!r}, but this machine shows no GPU; give cpu.")
    rows, limits, machine = [], [], ""
    for num_latents in latents:
        tell(f"{num_latents:,} latents, {num_tokens:,} tokens, {repeats} times")
        whole = in_child(Measurement(num_latents, num_tokens, repeats, device=device))
        lengths = (num_tokens // 4, num_tokens)
        tell(f"{num_latents:,} latents, {lengths[0]:,} and {lengths[1]:,} tokens, for the memory")
        full = [in_child(Measurement(num_latents, n, 1, 1.0, FULL_POOL_WINDOWS, device)) for n in lengths]
        steady = None
        if steady_tokens:
            tell(f"{num_latents:,} latents, {steady_tokens:,} tokens, for the steady state")
            steady = in_child(Measurement(num_latents, steady_tokens, floor_from=0.75, device=device))
        rows.append(row_of(whole, full, steady))
        limits.append({"num_latents": num_latents, **whole["limits"]})
        machine = whole["machine"]
    return {"rows": rows, "limits": limits, "machine": machine}


def row_of(whole: dict[str, Any], full: Sequence[dict[str, Any]], steady: dict[str, Any] | None) -> dict[str, Any]:
    """One row of the table, from the measurements of one number of latents; ``full`` are those of two lengths with a full pool."""
    tokens = sum(segment.tokens for segment in whole["runs"][0])
    ratios = [ratio(run, merge, tokens) for run, merge in zip(whole["runs"], whole["merge_s"], strict=True)]
    seconds = [
        sum(segment.extraction for segment in run) + merge
        for run, merge in zip(whole["runs"], whole["merge_s"], strict=True)
    ]
    row = {
        "num_latents": whole["what"]["num_latents"],
        "num_tokens": tokens,
        "ratio_to_floor": statistics.median(ratios),
        "ratio_to_floor_lowest": min(ratios),
        "ratio_to_floor_highest": max(ratios),
        "tokens_per_second": tokens / statistics.median(seconds),
        "floor_tokens_per_second": tokens / statistics.median(sum(s.floor for s in run) for run in whole["runs"]),
        "merge_s": statistics.median(whole["merge_s"]),
        "exemplar_kb_per_latent": whole["exemplar_bytes"] / whole["what"]["num_latents"] / 1e3,
        "peak_rss_mib": whole["peak_rss_mib"],
        "peak_rss_mib_full_pool": full[1]["peak_rss_mib"],
        "peak_rss_mib_full_pool_at_a_quarter": full[0]["peak_rss_mib"],
    }
    if whole.get("limits"):
        # of what the encoder's matrix product alone would do
        row["share_of_encoder_product"] = (
            row["tokens_per_second"] / whole["limits"]["encoder_product_tokens_per_second"]
        )
    if steady is not None:
        (run,) = steady["runs"]
        row |= {
            "steady_tokens": sum(segment.tokens for segment in run),
            "ratio_of_last_quarter": ratio(last_quarter(run)),
            "peak_rss_mib_steady": steady["peak_rss_mib"],
            "merge_s_steady": steady["merge_s"][0],
            "exemplar_kb_per_latent_steady": steady["exemplar_bytes"] / steady["what"]["num_latents"] / 1e3,
        }
    return row


if __name__ == "__main__":
    print(json.dumps(measure(Measurement(**json.loads(sys.argv[1])))))
