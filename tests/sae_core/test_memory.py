"""What is said of memory against what is taken: by the process, and by the arrays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae_core import memory
from sae_core.errors import ConfigError
from sae_core.memory import CoderSize, check_fits, extraction_need, sentence
from sae_core.partial import ExtractionSettings

SETTINGS = ExtractionSettings()
LONG = 1 << 30
MANY = [CoderSize(1 << 20, 64.0)]

_CHILD = """
import json, sys, threading
from pathlib import Path
import psutil
from sae_core.bench.world import make_world
from sae_core.encoding import Replica
from sae_core.extraction import Extractor
from sae_core.partial import ExtractionSettings
latents, tokens, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
world = make_world(latents, tokens, folder)
settings = ExtractionSettings()
replica = Replica(world.subject, [world.attached])
Extractor([replica], world.corpus, settings).extract(range(8))  # what compiling takes is not the pass's
process, seen, over = psutil.Process(), [], threading.Event()
def look():
    while not over.wait(0.003):
        seen.append(process.memory_info().rss)
before = process.memory_info().rss
threading.Thread(target=look).start()
extractor = Extractor([replica], world.corpus, settings)
extractor.extract(range(world.corpus.num_contexts))[0].save(folder / "p.safetensors")
over.set()
print(json.dumps({"taken": max(seen) - before, "held": extractor.nbytes}))
"""


@pytest.mark.long
@pytest.mark.parametrize("latents", [2048, 8192])
def test_what_is_taken_is_what_was_said(latents: int, tmp_path: Path) -> None:
    tokens = 131_072
    run = [sys.executable, "-c", _CHILD, str(latents), str(tokens), str(tmp_path)]
    found = json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    need = extraction_need([CoderSize(latents, 32.0)], SETTINGS, tokens, tokens)
    slack = 64 << 20  # the subject's activations, and pages that the allocator keeps
    assert found["taken"] < need.total + slack
    assert found["taken"] > 0.15 * need.total
    assert found["held"] < need.statistics + need.exemplars


def test_need_grows_with_what_it_is_said_to_depend_on() -> None:
    def total(
        latents: int = 65_536, active: float = 32, shard: int = 262_144, passes: int | None = None, **changes: int
    ) -> int:
        settings = ExtractionSettings(**(SETTINGS.__dict__ | changes))
        return extraction_need([CoderSize(latents, active)], settings, shard, LONG, passes).total

    least = total()
    assert total(latents=131_072) > 1.7 * least
    assert total(sampled_exemplars=200) > 4 * least
    assert total(active=320) > least
    assert total(passes=8_192) < least / 2
    assert (
        extraction_need([CoderSize(100, 5.0)] * 2, SETTINGS, 4096, LONG).exemplars
        == 2 * extraction_need([CoderSize(100, 5.0)], SETTINGS, 4096, LONG).exemplars
    )
    words = sentence(extraction_need(MANY, SETTINGS, 262_144, LONG), MANY, SETTINGS)
    assert words.startswith("extraction of 1,048,576 latents with 10 + 20 exemplars a side needs about ")
    assert "GiB" in words


def test_a_census_needs_what_its_corpus_has() -> None:
    """The settings of a census allow a window for each token; the corpus has fewer."""
    tokens = 2_000_000
    census = ExtractionSettings(pool_windows=tokens)
    need = extraction_need([CoderSize(16_384, 32.0)], census, 262_144, tokens)
    assert 9 * 32 * tokens * 0.4 < need.merging < 2 << 30
    assert need.total < 3 << 30


def test_what_does_not_fit_is_refused_with_the_setting_that_does() -> None:
    need = check_fits(MANY, SETTINGS, 262_144, LONG, None, 1 << 40)
    with pytest.raises(
        ConfigError, match=r"set extraction\.latents_per_pass to ([\d,]+) or less, .* (\d+) times"
    ) as refused:
        check_fits(MANY, SETTINGS, 262_144, LONG, None, need.total // 4)
    words = str(refused.value)
    offered = int(words.partition("latents_per_pass to ")[2].partition(" or")[0].replace(",", ""))
    assert check_fits(MANY, SETTINGS, 262_144, LONG, offered, need.total // 4).total <= need.total // 4
    with pytest.raises(
        ConfigError, match=r"lower extraction\.sampled_exemplars .* extraction\.pool_windows \(now 30,000\)"
    ):
        check_fits(MANY, SETTINGS, 262_144, LONG, None, 1 << 20)


def test_a_container_may_have_less_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.available_bytes()
    assert 1 << 26 < free < 1 << 50
    limit, used = tmp_path / "max", tmp_path / "current"
    monkeypatch.setattr(memory, "_CGROUPS", ((str(limit), str(used)),))
    used.write_text("70\n")
    limit.write_text("max\n")
    assert memory.available_bytes() > 1 << 26
    limit.write_text("1000\n")
    assert memory.available_bytes() == 930
