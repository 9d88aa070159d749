"""Precision and recall at the natural rate: each part against brute force, and the rules around them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import betaincinv, betaln, expit

from autointerp.statistics.natural_rate import (
    JudgeResolution,
    PlannedWindows,
    PrecisionBasis,
    Priors,
    ScreenCounts,
    StoppingRule,
    VerdictCounts,
    beta_prior,
    cell_mixture,
    check_audit,
    clopper_pearson,
    estimate_natural_rates,
    expected_widths,
    fit_rates,
    own_precision,
    posterior_figures,
    precision_basis,
    rate_draws,
    shared_factor,
    stratum_draws,
    verdict_counts,
)
from autointerp.statistics.natural_rate.audit import AuditCheck
from autointerp.statistics.natural_rate.cell_weights import sample_weights
from autointerp.statistics.natural_rate.drawing import select
from autointerp.statistics.natural_rate.expectation import TYPICAL, supposed_verdicts
from autointerp.statistics.natural_rate.grid import EDGES, LOGITS, RATES, Floats, quantiles
from autointerp.statistics.natural_rate.rate_classes import RateClasses, rate_classes
from sae_core.errors import InputError


def some_verdicts(num: int, seed: int, **planned: object) -> VerdictCounts:
    """A simulated run, pi from 1e-4 to 1e-1."""
    pi = 10 ** np.random.default_rng(seed).uniform(-4, -1, num)
    return supposed_verdicts(pi, dataclasses.replace(PlannedWindows(), **planned), TYPICAL, seed)


def bulk_only(pi: float, firing: tuple[int, int], bulk: tuple[int, int], num: int = 1) -> VerdictCounts:
    """Latents all of whose silent windows are bulk."""
    strata = [np.tile([0, 0, 0, count], (num, 1)) for count in (10**9, *bulk)]
    return verdict_counts(np.full(num, pi), np.full(num, firing[0]), np.full(num, firing[1]), *strata)


def flat(classes: RateClasses, rng: np.random.Generator) -> Floats:
    masses = np.diff(np.concatenate([[0.0], stats.beta.cdf(expit(EDGES[1:-1]), 0.5, 0.5), [1.0]]))
    return classes.likelihood * masses


def test_one_latent_under_a_flat_prior_is_what_integration_gives() -> None:
    pi, (n, x), (m, k) = 0.01, (40, 33), (88, 2)
    counts = bulk_only(pi, (n, x), (m, k))
    got = posterior_figures(counts, fit_rates(counts, 0, Priors((flat,), np.inf, 4_000)))
    recall = betaincinv(x + 0.5, n - x + 0.5, (np.arange(2_000) + 0.5) / 2_000)

    def below(odds: float) -> float:  # P(rate / recall <= odds), recall integrated out
        return float(np.mean(stats.beta.cdf(np.minimum(odds * recall, 1), k + 0.5, m - k + 0.5)))

    for value, share in ((got[0].low[0], 0.975), (got[0].median[0], 0.5), (got[0].high[0], 0.025)):
        odds = (1 / value - 1) * pi / (1 - pi)
        assert below(odds) == pytest.approx(share, abs=0.004)
    assert got[2].median[0] == pytest.approx(2 / (1 / got[0].median[0] + 1 / got[1].median[0]), rel=0.02)


def test_the_beta_prior_weighs_its_hyperparameters_by_the_exact_beta_binomial() -> None:
    rng = np.random.default_rng(0)
    rates = rate_classes(np.full(60, 88.0), rng.binomial(88, rng.beta(0.6, 8, 60)).astype(float))
    mean, size = (grid.ravel() for grid in np.meshgrid(beta_prior.MEANS, beta_prior.SIZES, indexing="ij"))
    exact = np.zeros(len(mean))
    for judged, yes, count in zip(rates.judged, rates.yes, rates.count, strict=True):
        a, b = mean * size, (1 - mean) * size
        exact += count * (betaln(a + yes, b + judged - yes) - betaln(a, b))
    exact = np.exp(exact - exact.max())
    exact /= exact.sum()
    got = beta_prior.hyperparameter_weights(rates.likelihood, rates.count)
    assert np.abs(got - exact).sum() < 0.02


def test_under_a_known_beta_prior_the_posterior_is_conjugate(monkeypatch: pytest.MonkeyPatch) -> None:
    known = np.zeros(len(beta_prior.MEANS) * len(beta_prior.SIZES))
    row = 20 * len(beta_prior.SIZES) + 7
    known[row] = 1.0
    monkeypatch.setattr(beta_prior, "hyperparameter_weights", lambda *_: known)
    mean, size = beta_prior.MEANS[20], beta_prior.SIZES[7]
    judged, yes = np.array([88.0, 88.0, 1500.0]), np.array([0.0, 3.0, 40.0])
    rates = rate_classes(judged, yes)
    masses = beta_prior.posterior_masses(rates, np.random.default_rng(0))
    shares = np.array([0.1, 0.5, 0.9, 0.975])
    exact = betaincinv(
        mean * size + rates.yes[:, None], (1 - mean) * size + (rates.judged - rates.yes)[:, None], shares
    )
    np.testing.assert_allclose(quantiles(masses, shares), exact, rtol=0.05)


def test_a_latent_far_in_the_tail_of_a_beta_prior_is_not_cut_off_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 940 windows a prior of 1,000 windows with 1% of yeses expects 9; a label with 200 lies 1e-80 out, and its posterior is known."""
    known = np.zeros(len(beta_prior.MEANS) * len(beta_prior.SIZES))
    row, column = 18, 12
    known[row * len(beta_prior.SIZES) + column] = 1.0
    monkeypatch.setattr(beta_prior, "hyperparameter_weights", lambda *_: known)
    mean, size = beta_prior.MEANS[row], beta_prior.SIZES[column]
    assert (mean, size) == (pytest.approx(0.0093, rel=0.01), 1_000)
    rates = rate_classes(np.array([940.0, 940.0]), np.array([4.0, 200.0]))
    shares = np.array([0.025, 0.5, 0.975])
    exact = betaincinv(
        mean * size + rates.yes[:, None], (1 - mean) * size + (rates.judged - rates.yes)[:, None], shares
    )
    got = quantiles(beta_prior.posterior_masses(rates, np.random.default_rng(0)), shares)
    np.testing.assert_allclose(got, exact, rtol=0.03)
    farther = rate_classes(np.array([2_000.0]), np.array([1_900.0]))
    beyond = beta_prior.posterior_masses(farther, np.random.default_rng(0))
    assert quantiles(beyond, shares)[0, 1] == pytest.approx(0.95, abs=0.01)  # no mass is left: its own windows say


def test_the_weights_of_cells_are_those_of_integration_over_the_simplex() -> None:
    likelihood = np.array([[1.0, 0.8, 0.1], [0.05, 0.4, 1.0], [0.2, 1.0, 0.3]])
    count, alpha = np.array([30.0, 4.0, 6.0]), 0.4
    drawn = sample_weights(likelihood, count, alpha, 60_000, 2_000, 5, 1)
    # Midpoints of a grid in logits of stick lengths, where the Dirichlet's poles are harmless.
    logits = np.linspace(-25, 25, 801)
    first, second = (stick.ravel() for stick in np.meshgrid(expit(logits), expit(logits), indexing="ij"))
    weights = np.column_stack([first, (1 - first) * second, (1 - first) * (1 - second)])
    log_density = alpha * np.log(first) + 2 * alpha * np.log1p(-first) + alpha * (np.log(second) + np.log1p(-second))
    log_density += np.log(weights @ likelihood.T) @ count
    density = np.exp(log_density - log_density.max())
    mean = density @ weights / density.sum()
    spread = np.sqrt(density @ np.square(weights - mean) / density.sum())
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.015)
    np.testing.assert_allclose(drawn.std(axis=0), spread, atol=0.015)


def test_weights_of_cells_that_no_window_tells_apart_stay_open_with_a_million_latents() -> None:
    """The sampler that hands latents to cells would not have moved: each of its steps is of one part in a thousand."""
    likelihood = np.array([[1.0, 1.0, 1e-9], [1e-9, 1e-9, 1.0]])
    drawn = sample_weights(likelihood, np.array([1e6, 1e4]), 0.4, 3_000, 500, 5, 1)
    share = drawn[:, 0] / (drawn[:, 0] + drawn[:, 1])
    assert np.quantile(share, [0.1, 0.9]).tolist() == pytest.approx(stats.beta.ppf([0.1, 0.9], 0.4, 0.4), abs=0.1)
    assert drawn[:, 2].mean() == pytest.approx(1 / 101, rel=0.05)


def test_the_cell_mixture_finds_two_modes() -> None:
    rng = np.random.default_rng(0)
    rate = np.where(rng.random(3_000) < 0.3, 0.2, 0.002)
    rates = rate_classes(np.full(3_000, 60.0), rng.binomial(60, rate).astype(float))
    masses = cell_mixture.posterior_masses(rates, rng)
    none, many = masses[0], masses[np.searchsorted(rates.yes, 12)]
    assert none[RATES < 0.02].sum() > 0.99
    assert many[(RATES > 0.1) & (RATES < 0.35)].sum() > 0.97


def test_the_shared_factors_sums_are_integrals() -> None:
    rates = [rate_classes(np.array([88.0, 1500.0]), np.array([1.0, 40.0]))]
    table = shared_factor.mean_likelihood(rates)
    for spread, centre in ((5, 100), (15, 140), (20, 60)):
        sigma, middle = shared_factor.SPREADS[spread], shared_factor.CENTRES[centre]
        for row in range(2):
            n, k = rates[0].judged[row], rates[0].yes[row]
            top = k * np.log(k / n) + (n - k) * np.log(1 - k / n)

            def integrand(t: float, n: float, k: float, top: float, middle: float, sigma: float) -> float:
                r = expit(t)
                return float(np.exp(k * np.log(r) + (n - k) * np.log1p(-r) - top) * stats.norm.pdf(t, middle, sigma))

            exact = integrate.quad(
                integrand, -40, 3.9, (n, k, top, middle, sigma), limit=500, points=[float(np.log(k / (n - k)))]
            )[0]
            assert table[0, spread, row, centre] == pytest.approx(exact, rel=0.06)


def test_draws_of_the_shared_factor_are_its_posterior() -> None:
    """The compiled loop with its tables against plain numpy on a grid of factor and rates."""
    counts = some_verdicts(700, 1)
    posterior = fit_rates(counts, 0)
    model = posterior.factor
    assert model is not None
    one = np.zeros(len(model.level), dtype=np.int64)  # the first draw of the hyperparameters, again and again
    fixed = dataclasses.replace(
        model,
        **{
            name: np.ascontiguousarray(getattr(model, name)[one])
            for name in ("level", "trend", "loading", "spread", "drawn_spread")
        },
    )
    many = 40 * 500
    rng = np.random.default_rng(0)
    posterior = dataclasses.replace(
        posterior,
        factor=fixed,
        scores=rng.normal(size=(many, 5)),
        by_class=posterior.by_class[:, :, :1],
        pool_scores=np.zeros((many + 1, 4)),
    )
    factor = np.linspace(-4, 4, 161)
    for latent in (0, 3, int(np.argmax(counts.audit_judged))):
        got = rate_draws(counts, posterior, np.array([latent]))[0, 1:]
        log_pi = np.log10(counts.pi[latent]) - model.mean_log_pi
        joint, given = np.exp(-(factor**2) / 2), []
        for h, rates in enumerate(posterior.classes):
            centre = model.level[0, h] + model.trend[0, h] * log_pi + model.loading[0, h] * factor
            weights = shared_factor.centred_weights(centre, float(shared_factor.SPREADS[model.spread[0, h]]))
            product = weights * rates.likelihood[rates.of_latent[latent]]
            given.append(product)
            joint = joint * product.sum(axis=1)
        joint /= joint.sum()
        for h, product in enumerate(given):
            masses = joint @ (product / product.sum(axis=1, keepdims=True))
            shares = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
            upto = np.cumsum(masses)
            exact = np.interp(shares, upto, LOGITS + 0.05)
            logits = np.log(got[:, h] / (1 - got[:, h]))
            np.testing.assert_allclose(np.quantile(logits, shares), exact, atol=0.12)


def test_the_shared_factor_learns_trend_and_loading() -> None:
    rng = np.random.default_rng(3)
    num = 1_500
    log_pi, factor = rng.uniform(-4, -1, num), rng.normal(size=num)
    level, trend, loading = [-3.0, -3.5, -4.0], [0.0, 1.0, -0.5], [0.8, 1.0, 1.2]
    rates = []
    for a, s, b in zip(level, trend, loading, strict=True):
        rate = expit(a + s * (log_pi + 2.5) + b * factor + rng.normal(0, 0.5, num))
        rates.append(rate_classes(np.full(num, 100.0), rng.binomial(100, rate).astype(float)))
    model = shared_factor.fit_shared_factor(log_pi, rates, rng)
    sign = np.sign(model.loading[:, :1])
    np.testing.assert_allclose(model.trend.mean(axis=0), trend, atol=0.15)
    np.testing.assert_allclose((model.loading * sign).mean(axis=0), loading, atol=0.25)
    np.testing.assert_allclose(model.level.mean(axis=0), level, atol=0.2)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.randoms())
def test_selection_is_sorting(values: list[int], random: object) -> None:
    array = np.array(values, dtype=float)
    rank = len(values) // 3
    assert select(array.copy(), 0, len(values) - 1, rank) == np.sort(array)[rank]


@pytest.mark.parametrize(("n", "k"), [(88, 0), (88, 3), (88, 88), (1, 0), (1500, 40)])
def test_clopper_pearson_is_scipys(n: int, k: int) -> None:
    truth = stats.binomtest(k, n).proportion_ci(method="exact")
    low, high = clopper_pearson(np.array([float(n)]), np.array([float(k)]))
    assert (low[0], high[0]) == (pytest.approx(truth.low), pytest.approx(truth.high))


def test_own_bounds_with_bulk_alone_are_clopper_pearsons() -> None:
    low, high = own_precision(bulk_only(0.01, (40, 32), (375, 0)), np.array([0.8]))
    # Three in n bounds a rate that was not seen: METHODS' rule of what a latent's own windows can show, less one tail of two.
    assert low[0] == pytest.approx(0.45, abs=0.03)
    assert high[0] == 1
    few, _ = own_precision(bulk_only(0.001, (40, 32), (375, 0)), np.array([0.8]))
    assert few[0] < 0.1


@pytest.mark.long
def test_the_order_of_the_latents_does_not_matter() -> None:
    counts = some_verdicts(640, 5)
    order = np.random.default_rng(0).permutation(len(counts))
    shuffled = VerdictCounts(**{
        field.name: None if (column := getattr(counts, field.name)) is None else column[order]
        for field in dataclasses.fields(counts)
    })  # fmt: skip
    first, second = estimate_natural_rates(counts, 7), estimate_natural_rates(shuffled, 7)
    for name in ("precision", "recall", "f1", "near_precision", "bulk_rate"):
        for bound in ("low", "median", "high"):
            assert np.array_equal(getattr(getattr(first, name), bound)[order], getattr(getattr(second, name), bound)), (
                name
            )
    assert (first.audit_covered, first.audit_position) == (second.audit_covered, second.audit_position)
    again = estimate_natural_rates(counts, 7)
    assert np.array_equal(first.precision.low, again.precision.low)
    other = estimate_natural_rates(counts, 8)
    assert not np.array_equal(first.precision.low, other.precision.low)
    assert np.abs(first.precision.median - other.precision.median).mean() < 0.02


def test_latents_with_the_same_counts_get_the_same_figures() -> None:
    counts = some_verdicts(100, 2)
    twice = VerdictCounts(**{
        field.name: None if (column := getattr(counts, field.name)) is None else np.concatenate([column, column])
        for field in dataclasses.fields(counts)
    })  # fmt: skip
    found = estimate_natural_rates(twice, 0).precision
    assert np.array_equal(found.low[:100], found.low[100:])
    assert np.array_equal(found.median[:100], found.median[100:])


def test_bounds_lie_around_medians_and_within_0_and_1() -> None:
    found = estimate_natural_rates(some_verdicts(600, 9), 0)
    for figure in (found.precision, found.recall, found.f1, found.near_precision, found.bulk_rate):
        assert np.all(
            (figure.low >= 0) & (figure.low <= figure.median) & (figure.median <= figure.high) & (figure.high <= 1)
        )
    assert np.all(found.near_precision.median >= found.precision.median)
    assert np.all(found.precision_own_low <= found.precision_own_high)
    assert (found.prior_num_latents, found.audit_total) == (600, 60)


def test_the_audit_passes_where_it_should_and_fails_where_its_windows_disagree() -> None:
    counts = some_verdicts(600, 11)
    good = check_audit(counts, 0)
    assert good.total == 60
    assert good.passed
    assert abs(good.position - 0.5) < 0.15
    audited = counts.audit_judged > 0
    noisy = dataclasses.replace(counts, audit_yes=np.where(audited, np.maximum(counts.audit_yes, 60), 0))
    bad = check_audit(noisy, 0)
    assert not bad.passed
    assert bad.position > 0.8
    assert check_audit(counts.without_audit(), 0) == AuditCheck(0, 0, pytest.approx(float("nan"), nan_ok=True))


def test_a_basis_for_every_case() -> None:
    width, own = np.array([0.3, 0.3, 0.3]), np.array([0.9, 0.31, 0.9])
    best = np.array([1.0, 1.0, 0.2])
    passed, failed = AuditCheck(58, 60, 0.5), AuditCheck(40, 60, 0.2)
    borrowed, own_, limited = PrecisionBasis.BORROWED, PrecisionBasis.OWN, PrecisionBasis.JUDGE_LIMITED
    unresolved = PrecisionBasis.UNRESOLVED
    assert precision_basis(width, own, best, 10, passed).tolist() == [borrowed, own_, limited]
    assert precision_basis(width, own, best, 9, passed).tolist() == [unresolved, own_, limited]
    assert precision_basis(width, own, best, 500, failed).tolist() == [unresolved, own_, limited]
    many = [np.tile(column, 200) for column in (width, own, best)]
    assert precision_basis(many[0], many[1], many[2], 500, failed)[0] is borrowed


def test_the_judges_resolution_limits_rare_latents_only() -> None:
    counts = some_verdicts(600, 12)
    found = estimate_natural_rates(counts, 0, JudgeResolution(2_000, 10))
    np.testing.assert_allclose(found.best_precision, counts.pi / (counts.pi + (1 - counts.pi) * 0.005))
    limited = found.precision_basis == PrecisionBasis.JUDGE_LIMITED
    assert np.array_equal(limited, found.best_precision < 0.5)
    assert JudgeResolution(2_000, 10).bounds() == (pytest.approx(0.0024, abs=1e-4), pytest.approx(0.0092, abs=1e-4))


def test_a_run_without_bulk_yeses_is_unresolved() -> None:
    counts = some_verdicts(80, 1, audit_latents=0)
    silent = dataclasses.replace(counts, yes=counts.yes * [1, 1, 1, 0])
    found = estimate_natural_rates(silent, 0)
    assert set(found.precision_basis) <= {PrecisionBasis.UNRESOLVED, PrecisionBasis.OWN}
    assert (found.audit_covered, found.audit_total) == (0, 0)


def test_a_screen_narrows_the_intervals_and_they_hold() -> None:
    rng = np.random.default_rng(4)
    num, screened = 800, 2_000
    pi = 10 ** rng.uniform(-4, -1, num)
    recall, bulk = rng.beta(8, 2, num), 10 ** rng.normal(-3.3, 0.8, num)
    near = 10 ** rng.normal(-1.8, 0.5, (num, 3))
    flag = 0.8 * bulk + 0.004 * (1 - bulk)
    pool = rng.multinomial(20_000, [0.03, 0.02, 0.01, 0.94], num)
    silent = np.array([24, 24, 24, 88])
    flagged = rng.binomial(screened, flag)
    verified = np.minimum(flagged, 10)
    screen = ScreenCounts(np.full(num, screened), flagged, verified, rng.binomial(verified, 0.8 * bulk / flag))  # type: ignore[arg-type]
    unflagged = 0.2 * bulk / (1 - flag)
    audit = np.where(np.arange(num) < 60, 1_500, 0)
    yes_near, x = rng.binomial(silent[:3], near), rng.binomial(40, recall)

    def estimate(bulk_yes: np.ndarray, audit_yes: np.ndarray, screen: ScreenCounts | None) -> tuple[float, float]:
        yes = np.column_stack([yes_near, bulk_yes])
        counts = verdict_counts(pi, np.full(num, 40), x, pool, np.tile(silent, (num, 1)), yes, audit, audit_yes, screen)
        found = estimate_natural_rates(counts, 0, audit=False).precision
        rate = near @ [0.03, 0.02, 0.01] + 0.94 * bulk
        truth = pi * recall / (pi * recall + (1 - pi) * rate)
        draws = stratum_draws(counts, fit_rates(counts, 0), np.array([0]))
        assert draws.shape == (1, 600, 4)
        return float(np.mean((found.low <= truth) & (truth <= found.high))), float(found.width.mean())

    with_screen = estimate(rng.binomial(88, unflagged), rng.binomial(audit, unflagged), screen)
    without = estimate(rng.binomial(88, bulk), rng.binomial(audit, bulk), None)
    assert with_screen[0] > 0.92
    assert without[0] > 0.92
    assert with_screen[1] < 0.85 * without[1]


def test_what_a_screen_misses_of_broad_labels_is_not_borrowed_from_narrow_ones() -> None:
    """30 labels in 600 say yes to a tenth of the bulk, and the screen sees half of it: of the other half few windows tell."""
    rng = np.random.default_rng(3)
    broad = np.arange(600) >= 570
    bulk = np.where(broad, 10 ** rng.normal(-1, 0.15, 600), 10 ** rng.normal(-3.9, 0.3, 600))
    bulk_flagged = rng.binomial(470, 0.5 * bulk)
    verified = np.minimum(bulk_flagged, 20)
    unflagged = 0.5 * bulk / (1 - 0.5 * bulk)
    columns = (np.full(600, 470), bulk_flagged, verified, verified)
    counts = verdict_counts(
        np.full(600, 0.01), np.full(600, 20), np.full(600, 16), np.tile([0, 0, 0, 30_000], (600, 1)),
        np.tile([0, 0, 0, 10], (600, 1)), np.column_stack([np.zeros((600, 3)), rng.binomial(10, unflagged)]),
        screen=ScreenCounts(*(column.astype(float) for column in columns)),
    )  # fmt: skip
    assert counts.screen is not None
    assert set(counts.screen.found()[broad]) == {2}
    assert set(counts.screen.found()[~broad]) == {0, 1}
    rate = estimate_natural_rates(counts, 0, audit=False).bulk_rate
    holds = (rate.low <= bulk) & (bulk <= rate.high)
    assert holds[broad].mean() >= 0.9
    assert holds[~broad].mean() >= 0.92
    assert np.median(rate.median[broad] / bulk[broad]) > 0.7


def test_stopping_takes_at_least_two_rounds_and_keeps_to_the_budget() -> None:
    rule = StoppingRule(width=0.2, min_rounds=2, max_windows=200)
    width = np.array([0.1, 0.1, 0.5, 0.5])
    assert rule.goes_on(width, [1, 2, 2, 4], [50, 100, 100, 200], 50).tolist() == [True, False, True, False]
    with pytest.raises(InputError, match="2 rounds"):
        StoppingRule(min_rounds=1)


def test_the_expected_interval_narrows_with_the_windows_and_with_the_firing_rate() -> None:
    pi = [1e-3, 1e-2, 1e-1]
    few = expected_widths(pi, PlannedWindows(10, (6, 6, 6, 22)), 0, 600)
    many = expected_widths(pi, PlannedWindows(), 0, 600)
    screened = expected_widths(pi, PlannedWindows(screened=2_000), 0, 600)
    assert np.all(np.diff(many.median) < 0)
    assert many.median.mean() < few.median.mean()
    assert screened.median.mean() < many.median.mean()
    assert np.all((many.low <= many.median) & (many.median <= many.high))
    assert np.all(many.own[:2] > many.median[:2])
    with pytest.raises(InputError, match="firing rates"):
        expected_widths([0.0], PlannedWindows(), 0)


def test_counts_of_too_many_kinds_are_rounded_and_the_figures_hardly_move() -> None:
    rng = np.random.default_rng(0)
    judged = rng.uniform(20, 90, 6_000)
    yes = np.minimum(rng.gamma(0.5, 6, 6_000), judged)
    rounded, exact = rate_classes(judged, yes, 4_000), rate_classes(judged, yes, 10_000)
    assert len(rounded.count) < 4_000 < len(exact.count)
    assert rounded.count.sum() == 6_000
    np.testing.assert_allclose(rounded.judged[rounded.of_latent], judged, rtol=0.04)
    first, second = (beta_prior.posterior_masses(rates, rng) for rates in (rounded, exact))
    means = (first @ RATES)[rounded.of_latent], (second @ RATES)[exact.of_latent]
    assert np.abs(means[0] / means[1] - 1).max() < 0.25
    assert np.abs(means[0] / means[1] - 1).mean() < 0.03


def test_counts_that_cannot_be_are_refused() -> None:
    good = {
        "pi": [0.01],
        "firing_judged": [10],
        "firing_yes": [9],
        "pool": [[5, 5, 5, 90]],
        "judged": [[5, 5, 5, 9]],
        "yes": [[0, 0, 0, 0]],
    }
    verdict_counts(**good)
    for name, value, words in (
        ("pi", [0.0], "outside 0 to 1"),
        ("firing_yes", [11], "more yeses"),
        ("yes", [[0, 0, 0, 10]], "more yeses"),
        ("pool", [[0, 0, 0, 0]], "no silent window"),
        ("judged", [[5, 5, 9]], "strata"),
        ("firing_judged", [10, 10], "different lengths"),
    ):
        with pytest.raises(InputError, match=words):
            verdict_counts(**{**good, name: value})
