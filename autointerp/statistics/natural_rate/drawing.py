"""Draws of a latent's rates and what follows from them, compiled: the part that runs once for each of a million latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.draw_tables import DrawTables
from autointerp.statistics.natural_rate.grid import Floats
from sae_core.compiled import compiled


@compiled
def fill_rates(latent: int, tables: DrawTables, upto_F: Floats, out_SR: Floats) -> None:
    """Draws of every rate of one latent into ``out_SR``; ``upto_F`` is room to work in."""
    num_rates = tables.of_latent.shape[0]
    plain = tables.by_class.shape[2]
    for h in range(num_rates):
        values = tables.by_class[h, tables.of_latent[h, latent]]
        for s in range(plain):
            out_SR[s, h] = values[s]
    num_models = tables.level.shape[0]
    if num_models == 0:
        return
    log_pi = tables.log_pi[latent]
    nodes = tables.nodes
    num_nodes = len(nodes)
    node_step = nodes[1] - nodes[0]
    last = tables.evidence.shape[3] - 1
    coarse_last = tables.quantiles.shape[3] - 1
    last_score = tables.quantiles.shape[4] - 1
    each = len(tables.scores) // num_models
    for j in range(num_models):
        # Posterior of the factor, given all of the latent's counts.
        for node in range(num_nodes):
            upto_F[node] = np.exp(-0.5 * nodes[node] * nodes[node])
        for h in range(num_rates):
            row = tables.evidence[h, tables.spread[j, h], tables.of_latent[h, latent]]
            base = (tables.level[j, h] + tables.trend[j, h] * log_pi - tables.first_centre) / tables.centre_step
            slope = tables.loading[j, h] / tables.centre_step
            for node in range(num_nodes):
                place = min(max(base + slope * nodes[node], 0.0), last - 1e-6)
                left = int(place)
                part = place - left
                upto_F[node] *= row[left] * (1.0 - part) + row[left + 1] * part
        total = 0.0
        for node in range(num_nodes):
            total += upto_F[node]
            upto_F[node] = total
        for draw in range(each):
            s = j * each + draw
            wanted = total * _normal_share(tables.scores[s, num_rates])
            node = 0
            before = 0.0
            while node < num_nodes - 1 and upto_F[node] < wanted:
                before = upto_F[node]
                node += 1
            within = (wanted - before) / (upto_F[node] - before)
            factor = nodes[node] + (within - 0.5) * node_step
            for h in range(num_rates):
                centre = tables.level[j, h] + tables.trend[j, h] * log_pi + tables.loading[j, h] * factor
                place = min(max((centre - tables.first_centre) / tables.coarse_step, 0.0), coarse_last - 1e-6)
                left = int(place)
                part = place - left
                score = min(max((tables.scores[s, h] - tables.first_score) / tables.score_step, 0.0), last_score - 1e-6)
                low = int(score)
                above = score - low
                rows = tables.quantiles[h, tables.drawn_spread[j, h], tables.of_latent[h, latent]]
                near = rows[left, low] * (1.0 - above) + rows[left, low + 1] * above
                far = rows[left + 1, low] * (1.0 - above) + rows[left + 1, low + 1] * above
                out_SR[plain + s, h] = 1.0 / (1.0 + np.exp(-(near * (1.0 - part) + far * part)))


@compiled
def _normal_share(score: float) -> float:
    """Share of a standard normal below ``score``, within 1e-7 (Abramowitz & Stegun 7.1.26)."""
    x = abs(score) / 1.4142135623730951
    t = 1.0 / (1.0 + 0.3275911 * x)
    tail: float = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    above: float = 0.5 * tail * np.exp(-x * x)
    return 1.0 - above if score >= 0 else above


@compiled
def select(values: Floats, low: int, high: int, rank: int) -> float:
    """The value of ``rank`` among ``values[low:high + 1]``, which are put in part into order (Hoare's selection)."""
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return float(values[rank])


@compiled
def summarise(
    chosen: NDArray[np.int64],
    tables: DrawTables,
    pi_L: Floats,
    pool_LH: Floats,
    recall_class_L: NDArray[np.int32],
    recall_CS: Floats,
    pool_scores_SH: Floats,
    ranks: NDArray[np.int64],
    out_LFQ: Floats,
) -> None:
    """Order statistics ``ranks`` (low, middle, high) of precision, recall, F1, near precision and bulk rate of the ``chosen`` latents."""
    num_rates = tables.of_latent.shape[0]
    num_draws, num_strata = pool_scores_SH.shape
    rates = np.empty((num_draws, num_rates))
    upto = np.empty(len(tables.nodes))
    figures = np.empty((5, num_draws))
    weights = np.empty(num_strata)
    for place in range(len(chosen)):
        latent = chosen[place]
        fill_rates(latent, tables, upto, rates)
        pi = pi_L[latent]
        for s in range(num_draws):
            whole = 0.0
            for h in range(num_strata):
                count = pool_LH[latent, h]
                weights[h] = 0.0
                if count > 0:
                    # A gamma draw by the cube of Wilson and Hilferty: weights follow Dirichlet(counts).
                    root = 1.0 - 1.0 / (9.0 * count) + pool_scores_SH[s, h] / (3.0 * np.sqrt(count))
                    weights[h] = count * max(root, 0.0) ** 3
                whole += weights[h]
            bulk = rates[s, num_strata - 1]
            if num_rates > num_strata:
                flagged = rates[s, num_strata + 1]
                bulk = flagged * rates[s, num_strata] + (1.0 - flagged) * bulk
            near = 0.0
            for h in range(num_strata - 1):
                near += weights[h] * rates[s, h]
            wrong = (1.0 - pi) * (near + weights[num_strata - 1] * bulk) / whole
            recall = recall_CS[recall_class_L[latent], s]
            right = pi * recall
            figures[0, s] = right / (right + wrong)
            figures[1, s] = recall
            figures[2, s] = 2.0 * right / (right + wrong + pi)
            figures[3, s] = right / (right + (1.0 - pi) * near / whole)
            figures[4, s] = bulk
        for figure in range(5):
            values = figures[figure]
            out_LFQ[place, figure, 1] = select(values, 0, num_draws - 1, ranks[1])
            out_LFQ[place, figure, 0] = select(values, 0, ranks[1], ranks[0])
            out_LFQ[place, figure, 2] = select(values, ranks[1], num_draws - 1, ranks[2])


@compiled
def draw_rates(chosen: NDArray[np.int64], tables: DrawTables, out_LSR: Floats) -> None:
    """Draws of every rate of the ``chosen`` latents."""
    upto = np.empty(len(tables.nodes))
    for place in range(len(chosen)):
        fill_rates(chosen[place], tables, upto, out_LSR[place])
