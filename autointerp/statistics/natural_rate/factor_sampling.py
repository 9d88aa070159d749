"""The loops of the shared factor (``shared_factor``), compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp.statistics.natural_rate.grid import Floats
from sae_core.compiled import compiled

Singles = NDArray[np.float32]


@compiled
def table_quantiles(
    likelihood_CG: Floats, weights_MG: Floats, logits_G: Floats, at_Q: Floats, out_CMQ: Singles
) -> None:
    """Quantiles of the grid's logits under likelihood x weights for every class and centre."""
    num_cells = len(logits_G)
    step = logits_G[1] - logits_G[0]
    upto = np.zeros(num_cells + 1)
    for c in range(len(likelihood_CG)):
        for m in range(len(weights_MG)):
            for g in range(num_cells):
                upto[g + 1] = upto[g] + likelihood_CG[c, g] * weights_MG[m, g]
            total = upto[num_cells]
            if total <= 0.0:
                # So far apart that rounding leaves nothing: the evidence rules this centre out, whatever stands here.
                for q in range(len(at_Q)):
                    out_CMQ[c, m, q] = logits_G[num_cells // 2]
                continue
            g = 0
            for q in range(len(at_Q)):
                wanted = at_Q[q] * total
                while g < num_cells - 1 and upto[g + 1] < wanted:
                    g += 1
                width = upto[g + 1] - upto[g]
                part = (wanted - upto[g]) / width if width > 0.0 else 0.5
                out_CMQ[c, m, q] = logits_G[g] + (part - 0.5) * step


@compiled
def _likelihood_of_rate(
    evidence_SCM: Singles,
    of_latent: Any,
    z_L: Floats,
    nodes_F: Floats,
    first: float,
    step: float,
    values: Floats,
    out_LF: Floats,
) -> None:
    """Likelihood of one rate's counts for every latent and node of the factor, at ``values`` = a, s, λ, index of σ."""
    last = evidence_SCM.shape[2] - 1
    table = evidence_SCM[int(values[3])]
    slope = values[2] / step
    for latent in range(len(z_L)):
        base = (values[0] + values[1] * z_L[latent] - first) / step
        row = table[of_latent[latent]]
        for node in range(len(nodes_F)):
            place = min(max(base + slope * nodes_F[node], 0.0), last - 1e-6)
            left = int(place)
            part = place - left
            out_LF[latent, node] = row[left] * (1.0 - part) + row[left + 1] * part


@compiled
def _log_mean(rest_LF: Floats, part_LF: Floats) -> float:
    """Sum over the latents of the log of the sum over nodes of the products."""
    found = 0.0
    for latent in range(len(rest_LF)):
        total = 0.0
        for node in range(rest_LF.shape[1]):
            total += rest_LF[latent, node] * part_LF[latent, node]
        found += np.log(total)
    return found


@compiled
def _log_prior(values: Floats, spreads: Floats, prior: Floats) -> float:
    found: float = -0.5 * ((values[0] - prior[0]) / prior[1]) ** 2
    found -= 0.5 * (values[1] / prior[2]) ** 2
    found -= 0.5 * (values[2] / prior[3]) ** 2
    spread = spreads[int(values[3])]
    # The list of spreads is even in log: the half-normal density times the spread.
    found += -0.5 * (spread / prior[4]) ** 2 + np.log(spread)
    return found


@compiled
def sample_hyperparameters(
    evidence_RSCM: Singles,
    of_latent_RL: Any,
    z_L: Floats,
    level_R: Floats,
    nodes_F: Floats,
    centres_M: Floats,
    spreads_S: Floats,
    prior: Floats,
    sweeps: int,
    burn_in: int,
    seed: int,
) -> Floats:
    """Draws of (a, s, λ, index of σ), [sweeps - burn_in, R, 4]."""
    np.random.seed(seed)
    num_rates, num_latents = of_latent_RL.shape
    num_nodes = len(nodes_F)
    first, step = centres_M[0], centres_M[1] - centres_M[0]
    node_weight = np.exp(-0.5 * nodes_F**2)
    node_weight /= node_weight.sum()
    values = np.zeros((num_rates, 4))
    parts = np.ones((num_rates, num_latents, num_nodes))
    rest = np.ones((num_latents, num_nodes))
    trial = np.ones((num_latents, num_nodes))
    for h in range(num_rates):
        values[h, 0], values[h, 2], values[h, 3] = level_R[h], 0.5, len(spreads_S) // 2
        _likelihood_of_rate(evidence_RSCM[h], of_latent_RL[h], z_L, nodes_F, first, step, values[h], parts[h])
    # Size of the steps of each rate, and the spread of its values so far, which shapes the steps.
    log_size = np.full(num_rates, -1.0)
    mean = values[:, :3].copy()
    moment = np.zeros((num_rates, 3, 3))
    shape = np.zeros((num_rates, 3, 3))
    for h in range(num_rates):
        shape[h] = np.diag(np.array([0.3, 0.3, 0.3]))
    kept = np.zeros((sweeps - burn_in, num_rates, 4))
    proposal = np.zeros(4)
    for sweep in range(sweeps):
        for h in range(num_rates):
            for latent in range(num_latents):
                for node in range(num_nodes):
                    product = node_weight[node]
                    for other in range(num_rates):
                        if other != h:
                            product *= parts[other, latent, node]
                    rest[latent, node] = product
            current = _log_mean(rest, parts[h])
            for kind in range(2):
                proposal[:] = values[h]
                if kind == 0:
                    noise = np.random.normal(0.0, 1.0, 3) * np.exp(log_size[h])
                    proposal[:3] += shape[h] @ noise
                else:
                    # The spread goes with the level: few yeses are told as well by a low level as by a wide spread below it.
                    move = 1.0 if np.random.random() < 0.5 else -1.0
                    proposal[3] += move
                    if proposal[3] < 0 or proposal[3] >= len(spreads_S):
                        continue
                    old, new = spreads_S[int(values[h, 3])], spreads_S[int(proposal[3])]
                    if np.random.random() < 0.5:
                        proposal[0] -= 0.5 * (new * new - old * old) * np.random.choice(np.array([0.0, 0.3, 0.7, 1.0]))
                _likelihood_of_rate(evidence_RSCM[h], of_latent_RL[h], z_L, nodes_F, first, step, proposal, trial)
                likelihood = _log_mean(rest, trial)
                gain = (
                    likelihood
                    - current
                    + _log_prior(proposal, spreads_S, prior)
                    - _log_prior(values[h], spreads_S, prior)
                )
                accepted = np.log(np.random.random()) < gain
                if accepted:
                    values[h] = proposal
                    current = likelihood
                    parts[h] = trial
                if kind == 0 and sweep < burn_in:
                    log_size[h] += ((1.0 if accepted else 0.0) - 0.3) / (1.0 + sweep) ** 0.6
            if sweep < burn_in:
                weight = 1.0 / (sweep + 2.0)
                away = values[h, :3] - mean[h]
                mean[h] += weight * away
                for i in range(3):
                    for j in range(3):
                        moment[h, i, j] += weight * (away[i] * away[j] - moment[h, i, j])
                if sweep % 100 == 99:
                    shape[h] = np.linalg.cholesky(moment[h] + 1e-3 * np.eye(3))
                    log_size[h] = np.log(1.2)
        if sweep >= burn_in:
            kept[sweep - burn_in] = values
    return kept
