"""How much memory an extraction needs, said before it starts, and how much there is. Torch-free.

Need depends on latents, exemplars, the pool and a shard's size, not on the tokens of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_core.errors import ConfigError
from sae_core.partial import ExtractionSettings

NUM_SIDES = 3
_GROUP_BYTES = 64 + 34 * 4
"""Statistics of a latent on one side: counts, sums, bounds; histogram."""
_ITEM_BYTES, _ENTRY_BYTES = 25, 5
"""An exemplar without its activations; one activation."""
_ENTRIES_AN_ITEM = 6
"""Activations of an exemplar's window; measured means are 1.5 to 4, of dense latents up to the window's length."""
_ROOM = 1.5
"""The reservoir is cleared when it is full, and grown where that leaves more than two thirds."""
_POOL_ENTRY_BYTES = 9
_TILE_BYTES = 256 << 20
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class CoderSize:
    """What of a coder decides the memory of its extraction."""

    num_latents: int
    """Of the coder."""
    active: float
    """Latents that are active on a token, on average."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that are needed beside the weights of subject and coders, at the most demanding moment."""

    statistics: int
    """Counts, sums and histograms, and their copy for a shard's partial."""
    exemplars: int
    """The reservoirs, and what a shard's partial takes of them."""
    pool: int
    """A shard's windows of the pool with all their activations, and their copy."""
    batch: int
    """Pre-activations and activations of one batch."""
    merging: int
    """Putting partials together, when the rest is free again."""

    @property
    def total(self) -> int:
        return max(self.statistics + self.exemplars + self.pool + self.batch, self.merging)


def extraction_need(
    coders: Sequence[CoderSize],
    settings: ExtractionSettings,
    shard_tokens: int,
    corpus_tokens: int,
    latents_per_pass: int | None = None,
) -> MemoryNeed:
    """About what extracting ``coders`` together needs, ``latents_per_pass`` of each at a time (all, without it)."""
    shard_tokens = min(shard_tokens, corpus_tokens)
    kept = [min(coder.num_latents, latents_per_pass or coder.num_latents) for coder in coders]
    exemplars = NUM_SIDES * (settings.top_exemplars + settings.sampled_exemplars)
    item = _ITEM_BYTES + _ENTRIES_AN_ITEM * _ENTRY_BYTES
    # a shard's partial: places of items and activations, a copy by thread, the copies put together
    leaving = 16 + 8 * _ENTRIES_AN_ITEM + 2 * item
    windows = min(shard_tokens // settings.window_length, NUM_SIDES * settings.pool_windows)
    active = sum(coder.active * part / coder.num_latents for coder, part in zip(coders, kept, strict=True))
    batch_tokens = settings.batch_tokens or 2_048
    slices = max(min(coder.num_latents, 32_768) for coder in coders)
    # a side has at most about half of the corpus
    side_tokens = min(settings.pool_windows * settings.window_length, corpus_tokens // 2)
    side_of_pool = side_tokens * max(coder.active for coder in coders)
    return MemoryNeed(
        statistics=sum(kept) * NUM_SIDES * 3 * _GROUP_BYTES,
        exemplars=int(sum(kept) * exemplars * (_ROOM * item + leaving)),
        pool=int(2 * windows * settings.window_length * active * _POOL_ENTRY_BYTES),
        batch=sum(min(_TILE_BYTES, 4 * batch_tokens * coder.num_latents) for coder in coders)
        + int(batch_tokens * sum(coder.active for coder in coders) * 64),
        merging=int(slices * exemplars * 4 * item + side_of_pool * _POOL_ENTRY_BYTES),
    )


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its container's where that has less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            most, now = Path(limit).read_text().strip(), Path(used).read_text().strip()
        except OSError:
            continue
        if most.isdecimal() and now.isdecimal():
            free = min(free, max(0, int(most) - int(now)))
    return free


def sentence(need: MemoryNeed, coders: Sequence[CoderSize], settings: ExtractionSettings, passes: int = 1) -> str:
    """What to tell before it starts."""
    latents = sum(coder.num_latents for coder in coders)
    parts = ", ".join(
        f"{name} {_size(part)}"
        for name, part in (
            ("exemplars", need.exemplars),
            ("statistics", need.statistics),
            ("a shard's pool", need.pool),
            ("a batch", need.batch),
            ("merging, afterwards", need.merging),
        )
    )
    return (
        f"extraction of {latents:,} latents with {settings.top_exemplars} + {settings.sampled_exemplars} exemplars a side "
        + (f"in {passes} passes " if passes > 1 else "")
        + f"needs about {_size(need.total)} of memory beside the weights ({parts}), however long the corpus"
    )


def check_fits(
    coders: Sequence[CoderSize],
    settings: ExtractionSettings,
    shard_tokens: int,
    corpus_tokens: int,
    latents_per_pass: int | None,
    free: int,
) -> MemoryNeed:
    """The need, where ``free`` bytes suffice for it. Errors: ConfigError, which names the settings that would fit."""
    need = extraction_need(coders, settings, shard_tokens, corpus_tokens, latents_per_pass)
    if need.total <= free:
        return need
    most = max(coder.num_latents for coder in coders)
    fitting = latents_per_pass or most
    while fitting > 64 and extraction_need(coders, settings, shard_tokens, corpus_tokens, fitting).total > free:
        fitting //= 2
    latents = sum(coder.num_latents for coder in coders)
    given = (
        f"extraction of {latents:,} latents with {settings.top_exemplars} + {settings.sampled_exemplars} exemplars a side "
        f"needs about {_size(need.total)} of memory beside the weights, and {_size(free)} are free"
    )
    if extraction_need(coders, settings, shard_tokens, corpus_tokens, fitting).total <= free:
        passes = -(-most // fitting)
        raise ConfigError(
            f"{given}: set extraction.latents_per_pass to {fitting:,} or less, which reads the corpus {passes} times with the "
            "same result."
        )
    raise ConfigError(
        f"{given}: lower extraction.sampled_exemplars or extraction.top_exemplars, extraction.pool_windows (now "
        f"{settings.pool_windows:,}) or extraction.shard_tokens (now {shard_tokens:,}), or take a machine with more."
    )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{max(1, count // 2**20):,} MiB"
