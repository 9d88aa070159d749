"""What goes into an estimate: which rounds count, which answers are missing, and what may be asked of the judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autointerp.config import PrecisionConfig, parse_config
from autointerp.judging.tally import LabelTally, Tally
from autointerp.judging.verdicts import Verdict, Verdicts
from autointerp.pipeline.natural_rate.estimates import _counted, plain_tally
from autointerp.pipeline.retrying import anything_to_retry
from autointerp.sampling.window import Stratum
from autointerp.store import open_store
from autointerp.store.models import Run, ScreenRow
from autointerp.store.opening import sqlite_url
from sae_core.errors import ConfigError


def said(letters: str, *, pool: int = 900, rate: float | None = 0.1) -> dict[str, Any]:
    strata = {"f": Stratum.FIRING, "b": Stratum.BULK, "s": Stratum.FLAGGED}
    items = tuple(
        Verdict(f"{n}:0", strata[letter], letter == "f", letter == "f", flagged=letter == "s")
        for n, letter in enumerate(letters)
    )
    return Verdicts(items, {Stratum.BULK: pool}, rate).to_json()


def row(stage: str, failure: str | None = None, **items: Any) -> ScreenRow:
    return ScreenRow(
        run_id="r", source="s", latent=0, stage=stage, explainer="e", items=items, failure_kind=failure, failure_message=failure
    )  # fmt: skip


def test_the_audit_s_own_screen_and_failed_rounds_do_not_count() -> None:
    rounds = [
        row("screen_1", screened=100, flagged=5),
        row("audit", screened=40, flagged=3, verdicts=said("b" * 37)),
        row("screen_2", screened=200, flagged=9, verdicts=said("sssssbbbbb")),
        row("screen_3", failure="server_error", screened=0, flagged=0),
    ]
    found = _counted(said("ffffbbbbbb"), rounds)
    assert isinstance(found, LabelTally)
    assert (found.screened, found.flagged) == (300, 14)
    assert found.audit == Tally(judged=(0, 0, 0, 37))
    assert [tally.judged[3] for tally in found.tallies] == [6, 5]
    assert found.tallies[1].verified == 5
    assert not found.plain


def test_a_label_without_silent_windows_or_without_a_rate_is_a_typed_failure() -> None:
    for items in (said("ff", pool=0), said("ffbb", rate=None), said("ffbb", rate=1.0), None):
        found = _counted(items, ())
        assert not isinstance(found, LabelTally)
        assert found.kind.value == "too_few_windows"
    assert plain_tally(said("ffbbs")).tallies[0].judged[3] == 2


@pytest.mark.parametrize(("failures", "again"), [({"server_error": 3}, True), ({"timeout": 1}, True), ({"refused": 9}, False), ({}, False)])  # fmt: skip
def test_what_a_server_failed_in_a_round_can_be_asked_again(
    tmp_path: Path, failures: dict[str, int], again: bool
) -> None:
    store = open_store(sqlite_url(tmp_path / "a.db"))
    store.create_run(
        Run(id="r", name="r", digest="d", ordinal=1, config={}, state="done", folder=str(tmp_path), code_version="0")
    )
    store._add([row("screen_2", screened=10, flagged=0, failures=failures)])
    assert anything_to_retry(store, "r") is again


def test_a_judge_that_does_not_ask_again_gives_no_precision() -> None:
    config: dict[str, Any] = {
        "subject": {"model": "m"},
        "coders": [{"path": "c"}],
        "corpus": {"path": "t"},
        "endpoints": [{"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m"}],
        "explainers": [{"kind": "max_activating"}],
        "scorers": [{"kind": "detection", "confirm": False}],
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"confirm = false.*said twice: set confirm = true, or precision.by"):
        parse_config(config, "a test")
    parse_config(config | {"precision": {"by": ""}}, "a test")


def test_a_screen_of_a_few_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="0 for no screen, or at least 50"):
        PrecisionConfig(screen_windows=4)
    assert PrecisionConfig(screen_windows=0).screen_windows == 0
