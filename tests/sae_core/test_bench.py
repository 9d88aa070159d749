"""The benchmark's own arithmetic, and one small measurement for real."""

from __future__ import annotations

import json

import pytest

from sae_core.bench.extraction import Measurement, Segment, in_child, last_quarter, ratio, row_of


def test_ratio_is_of_the_segments_that_have_both() -> None:
    segments = [Segment(100, 3.0, 0.0), Segment(100, 2.0, 1.0), Segment(50, 1.0, 3.0)]
    assert ratio(segments) == pytest.approx(3.0 / 4.0)
    # 250 tokens were merged in 5 s, 150 of them in segments that count: 3 s
    assert ratio(segments, 5.0, 250) == pytest.approx((3.0 + 3.0) / 4.0)


def test_the_last_quarter_begins_at_three() -> None:
    segments = [Segment(100, float(i), 1.0) for i in range(8)]
    assert [s.extraction for s in last_quarter(segments)] == [6.0, 7.0]
    uneven = [Segment(100, 0.0, 1.0)] * 3 + [Segment(40, 9.0, 1.0)]
    assert [s.extraction for s in last_quarter(uneven)] == [9.0]
    uneven = [Segment(60, 0.0, 1.0)] * 5 + [Segment(40, 9.0, 1.0)]
    assert [s.extraction for s in last_quarter(uneven)] == [9.0]


def measured(runs: list[list[Segment]], merges: list[float], rss: float, latents: int = 10) -> dict[str, object]:
    return {
        "what": {"num_latents": latents},
        "runs": runs,
        "merge_s": merges,
        "exemplar_bytes": 30_000,
        "peak_rss_mib": rss,
    }


FULL = [measured([], [], 40.0), measured([], [], 45.0)]


def test_a_row_has_medians_of_the_repeats() -> None:
    runs = [
        [Segment(100, 1.0, 1.0), Segment(100, 2.0, 1.0)],
        [Segment(100, 1.0, 2.0), Segment(100, 1.0, 2.0)],
        [Segment(100, 4.0, 1.0), Segment(100, 4.0, 1.0)],
    ]
    steady = [Segment(100, 9.0, 0.0)] * 3 + [Segment(100, 1.0, 2.0)]
    row = row_of(measured(runs, [1.0, 2.0, 2.0], 50.0), FULL, measured([steady], [3.0], 60.0))
    assert row["num_tokens"] == 200
    assert (row["ratio_to_floor_lowest"], row["ratio_to_floor"], row["ratio_to_floor_highest"]) == (1.0, 2.0, 5.0)
    assert row["tokens_per_second"] == 200 / 4.0
    assert row["floor_tokens_per_second"] == 200 / 2.0
    assert row["exemplar_kb_per_latent"] == 3.0
    assert (row["peak_rss_mib"], row["peak_rss_mib_steady"]) == (50.0, 60.0)
    assert (row["peak_rss_mib_full_pool_at_a_quarter"], row["peak_rss_mib_full_pool"]) == (40.0, 45.0)
    assert row["ratio_of_last_quarter"] == 0.5
    assert "steady_tokens" not in row_of(measured(runs, [1.0, 2.0, 2.0], 50.0), FULL, None)


@pytest.mark.long
def test_a_small_measurement_for_real() -> None:
    found = in_child(Measurement(num_latents=256, num_tokens=16_384, repeats=2, floor_from=0.0))
    assert [len(run) for run in found["runs"]] == [8, 8]
    assert all(s.tokens == 2_048 and s.extraction > 0 and s.floor > 0 for run in found["runs"] for s in run)
    assert found["floor"]["batch_tokens"] >= found["floor"]["tile_tokens"] > 0
    assert found["exemplar_bytes"] > 0
    assert 100 < found["peak_rss_mib"] < 4_000
    assert all(value > 0 for value in found["limits"].values())
    row = row_of(found, [found, found], None)
    assert json.loads(json.dumps(row))["num_tokens"] == 16_384
    assert 0 < row["share_of_encoder_product"] < 1
