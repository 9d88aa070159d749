"""Which night is due when: days on which the clock changes, machines that were off, files that do not fit."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autointerp.nightly.schedule import Schedule, load_schedule
from autointerp.nightly.times import begins_at, ends_at, last_due
from sae_core.errors import ConfigError, MissingFileError

TEXT = """
name = "n"
run = "r"
[[scorers]]
kind = "detection"
"""


def schedule(**fields: Any) -> Schedule:
    return Schedule(name="n", run="r", scorers=({"kind": "detection"},), **fields)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_days_on_which_the_clock_changes() -> None:
    """Berlin 2026: 02:00 to 03:00 does not exist on March 29, and comes twice on October 25."""
    at = schedule(at="02:30", timezone="Europe/Berlin")
    assert begins_at(at, date(2026, 3, 28)) == utc("2026-03-28T01:30")
    assert begins_at(at, date(2026, 3, 29)) == utc("2026-03-29T01:30")  # 03:30 there
    assert begins_at(at, date(2026, 3, 30)) == utc("2026-03-30T00:30")
    assert begins_at(at, date(2026, 10, 25)) == utc("2026-10-25T00:30")  # the first of the two
    assert begins_at(at, date(2026, 10, 26)) == utc("2026-10-26T01:30")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "UTC"])
def test_every_local_date_is_due_once_and_in_order(zone: str) -> None:
    at = schedule(at="02:30", timezone=zone)
    now, seen = utc("2026-03-01T00:00"), []
    while now < utc("2026-11-15T00:00"):
        seen.append(last_due(at, now))
        now += timedelta(minutes=20)
    assert seen == sorted(seen)
    days = sorted(set(seen))
    assert days == [days[0] + timedelta(days=n) for n in range(len(days))]


def test_the_window_of_a_night_that_comes_late() -> None:
    at = schedule(at="02:00", window_h=4.0)
    day = date(2026, 1, 5)
    assert ends_at(at, day, utc("2026-01-05T02:00")) == utc("2026-01-05T06:00")
    assert ends_at(at, day, utc("2026-01-05T05:00")) == utc("2026-01-05T06:00")
    assert ends_at(at, day, utc("2026-01-05T15:00")) == utc("2026-01-05T19:00")
    assert ends_at(at, day, utc("2026-01-06T01:00")) == utc("2026-01-06T02:00")  # then it is the next one's turn


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('at = "25:00"', "'at' is '25:00' .*a time of the day"),
        ('timezone = "Mars/Base"', "'timezone' is 'Mars/Base' .*IANA name"),
        ('latents = "5:5"', "'latents' is '5:5' .*not empty"),
        ("anchor = 3", "unknown key 'anchor' .*anchors"),
        ("window_h = 30.0", "'window_h' is 30.0 .*less than or equal to 24"),
        ('stale = ["old"]', "'stale.0' is 'old' .*never_scored"),
        ('bars = {"fuzz.score" = 0.7}', "bars names 'fuzz.score' .*'detection'"),
        ('bars = {"detection.scor" = 0.7}', "bars names 'detection.scor' .*did you mean 'detection.score'"),
        ('bars = {"detection.written_precision" = 0.7}', "bars names 'detection.written_precision'"),
        ('bars = {"detection.latent" = 0.7}', "bars names 'detection.latent'"),
        ('bars = {"detection.score" = 0.7, "detection.tpr" = 0.5, "detection.precision_low" = 0.2}', ""),
        ('bars = {"detection" = 0.7}', "'bars' is .*a dot between"),
        ("", ""),
    ],
)
def test_files_that_do_not_fit_are_refused_in_a_sentence(tmp_path: Path, more: str, said: str) -> None:
    path = tmp_path / "n.toml"
    path.write_text(f"{more}\n{TEXT}")
    if not said:
        assert load_schedule(path).folder == str(tmp_path / "nightly" / "n")
        return
    with pytest.raises(ConfigError, match=said) as refused:
        load_schedule(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no schedule"):
        load_schedule(tmp_path / "x.toml")


def test_run_ids_fit_and_are_told_apart() -> None:
    assert schedule().run_id("2026-01-05") == "night-n-20260105"
    long = [schedule().model_copy(update={"name": f"a-rather-long-name-of-a-schedule-{n}"}) for n in range(2)]
    ids = [one.run_id("2026-01-05") for one in long]
    assert ids[0] != ids[1]
    assert all(len(one) == 32 for one in ids)
