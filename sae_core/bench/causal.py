"""Times interventions beside the two plain ways of doing them, in turns in one process, and compares their numbers.

The plain ways are written out by hand below: a forward pass of the whole model over full contexts with a hook on the
block, one latent, one direction and one strength at a time, either all windows of the latent in one batch, or one window
a call. They get the same latents, windows, control directions and rule for the next strength, and compute logits only
where something is measured, which is kinder to them than what is usually written.

Letters in shapes: C contexts, T tokens of a context, W windows, n measured tokens, D width, V vocabulary, R directions.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import attach
from sae_core.bench.machine import machine
from sae_core.bench.world import make_world
from sae_core.coder import SparseCoder
from sae_core.errors import ConfigError
from sae_core.hookpoints import block_list_name
from sae_core.intervention.ablation import AblationSettings, run_ablation
from sae_core.intervention.directions import deal_directions, draw_control_directions
from sae_core.intervention.evidence import AblationEvidence, SteeringEvidence
from sae_core.intervention.steering import SteeringSettings, run_steering
from sae_core.intervention.strength import find_strengths
from sae_core.intervention.windows import InterventionWindow
from sae_core.loading import load_coder
from sae_core.subject import SubjectModel

CONTEXT_LENGTH, WINDOW = 256, 32

Windows = Mapping[int, Sequence[InterventionWindow]]
"""Latent -> its windows."""


@dataclass(frozen=True)
class CausalWork:
    """What all ways do."""

    subject: SubjectModel
    coder: SparseCoder
    """Reads and writes the output of one block."""
    contexts: NDArray[np.int64]
    """[C, T]"""
    ablated: Windows
    fitted: Windows
    scored: Windows
    ablation: AblationSettings
    steering: SteeringSettings

    def tokens(self, ordinal: int) -> NDArray[np.int64]:
        """A context's token ids."""
        row: NDArray[np.int64] = self.contexts[ordinal]
        return row

    def only(self, latents: Sequence[int]) -> CausalWork:
        """The same of some of the latents."""
        ablated, fitted, scored = (
            {latent: windows[latent] for latent in latents} for windows in (self.ablated, self.fitted, self.scored)
        )
        return replace(self, ablated=ablated, fitted=fitted, scored=scored)


class Numbers(NamedTuple):
    """What one way found."""

    divergences: dict[tuple[Any, ...], float]
    """Nats: KLs and changes of the cross-entropy, by what they are of."""
    strengths: dict[tuple[Any, ...], float]
    """Strengths of steering, in lengths of the direction; NaN where the target is not met."""


class Difference(NamedTuple):
    """How far two ways' numbers lie apart."""

    nats: float
    """Largest difference of a KL or of a change of cross-entropy."""
    relative: float
    """The same over the number itself, of those that are at least 0.01 nats."""
    strength: float
    """Largest relative difference of a strength; infinite where only one way met the target."""
    compared: int


def sampled_contexts(subject: SubjectModel, count: int, seed: int = 0) -> NDArray[np.int64]:
    """[C, T] contexts that the subject writes itself, token by token at temperature 1."""
    torch.manual_seed(seed)
    first = subject.bos_id if subject.bos_id is not None else 0
    prompt = torch.full((count, 1), first, device=subject.device)
    written: Tensor = subject.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        top_k=0,
        max_new_tokens=CONTEXT_LENGTH - 1,
        min_new_tokens=CONTEXT_LENGTH - 1,
        pad_token_id=first,
    )
    return written.cpu().numpy()


@torch.inference_mode()
def make_work(
    subject: SubjectModel,
    coder: SparseCoder,
    contexts: NDArray[np.int64],
    num_latents: int,
    num_windows: int,
    seed: int = 0,
) -> CausalWork:
    """A random sample of the latents that fire in enough contexts, with ``num_windows`` windows each of either side.

    Even contexts are the score side, odd ones the explain side. A latent's windows lie in the first contexts in which it
    fires, as in a run, where all latents go through the contexts in one random order.

    Raises:
        ConfigError: no latent fires often enough.
    """
    hookpoint = subject.hookpoint(coder.hookpoints_in[0])
    found: dict[int, tuple[list[InterventionWindow], list[InterventionWindow]]] = {}
    special = torch.tensor(sorted(subject.special_ids), dtype=torch.long)
    for ordinal, ids in enumerate(torch.from_numpy(contexts)):
        hidden = subject.capture(ids[None], [hookpoint])[hookpoint][0].float()
        fires = coder.encode(hidden).cpu() > 0
        fires[torch.isin(ids, special)] = False
        firing_windows = fires.reshape(-1, WINDOW, fires.shape[1]).any(1)
        for latent in torch.nonzero(firing_windows.any(0)).flatten().tolist():
            first = int(firing_windows[:, latent].nonzero()[0])
            window = InterventionWindow(ordinal, first * WINDOW, WINDOW, ordinal)
            found.setdefault(latent, ([], []))[ordinal % 2].append(window)
    lengths = coder.directions.norm(dim=-1).tolist()
    able = [f for f, sides in found.items() if min(map(len, sides)) >= num_windows and lengths[f] > 0]
    if not able:
        raise ConfigError(
            f"No latent of the coder fires in {num_windows} of {len(contexts) // 2} contexts; give fewer windows."
        )
    chosen = np.random.default_rng(seed).permutation(sorted(able))[:num_latents].tolist()
    score, fit = ({latent: found[latent][side][:num_windows] for latent in sorted(chosen)} for side in (0, 1))
    return CausalWork(subject, coder, contexts, score, fit, score, AblationSettings(), SteeringSettings(targets=(0.1,)))


def ours(work: CausalWork) -> Numbers:
    """All latents of the work by :func:`run_ablation` and :func:`run_steering`."""
    number = len(work.contexts)
    ablation = run_ablation(work.subject, work.coder, work.tokens, number, work.ablated, settings=work.ablation)
    steering = run_steering(
        work.subject, work.coder, work.tokens, number, work.fitted, work.scored, settings=work.steering
    )
    return _numbers(ablation, steering)


def _numbers(ablation: AblationEvidence, steering: SteeringEvidence) -> Numbers:
    divergences: dict[tuple[Any, ...], float] = {}
    for i, (latent, context, position) in enumerate(
        zip(ablation.latent.tolist(), ablation.context.tolist(), ablation.position.tolist(), strict=True)
    ):
        for name, own, control in (
            ("kl_firing", ablation.kl_firing, ablation.control_kl_firing),
            ("kl_rest", ablation.kl_rest, ablation.control_kl_rest),
            ("delta_ce", ablation.delta_ce, ablation.control_delta_ce),
        ):
            for direction, value in enumerate([float(own[i]), *control[i].tolist()]):
                divergences[name, latent, context, position, direction] = value
    strengths: dict[tuple[Any, ...], float] = {}
    for i, (latent, target) in enumerate(zip(steering.latent.tolist(), steering.target.tolist(), strict=True)):
        fits = [float(steering.kl_fit[i]), *steering.control_kl_fit[i].tolist()]
        scores = [float(steering.kl_score_mean[i]), *steering.control_kl_score[i].tolist()]
        alphas = [float(steering.alpha[i]), *steering.control_alpha[i].tolist()]
        for direction, (fit, score, alpha) in enumerate(zip(fits, scores, alphas, strict=True)):
            divergences["kl_fit", latent, target, direction] = fit
            divergences["kl_score", latent, target, direction] = score
            strengths[latent, target, direction] = alpha
    return Numbers(divergences, strengths)


class PlainWay:
    """A forward hook on the whole model, over full contexts."""

    def __init__(self, work: CausalWork, windows_a_call: int | None) -> None:
        """``windows_a_call``: None for all windows of a latent in one batch."""
        self.work = work
        self.windows_a_call = windows_a_call
        subject, coder = work.subject, work.coder
        self.block = subject.base.get_submodule(coder.hookpoints_in[0])
        self.head = subject.model.get_output_embeddings()
        self.special = torch.tensor(sorted(subject.special_ids), dtype=torch.long)
        self.ablation_controls, _ = self._controls(work.ablation)
        self.steering_controls, self.activation_norm = self._controls(work.steering)

    def _controls(self, settings: AblationSettings | SteeringSettings) -> tuple[dict[int, Tensor], float]:
        """Latent -> its control directions [R, D], and the mean length of the hookpoint's activations."""
        work, count = self.work, settings.control_directions
        hookpoint = work.subject.hookpoint(work.coder.hookpoints_out[0])
        size = max(settings.control_pool, 2 * count)
        pool = draw_control_directions(work.subject, [hookpoint], work.tokens, len(work.contexts), size, 0)
        latents = np.array(list(work.ablated))
        dealt = torch.from_numpy(deal_directions(latents, pool.kinds, count, 0)).long()
        return dict(zip(latents.tolist(), pool.vectors[dealt], strict=True)), pool.activation_norm

    @torch.inference_mode()
    def __call__(self) -> Numbers:
        """Every latent of the work, one after the other."""
        divergences: dict[tuple[Any, ...], float] = {}
        strengths: dict[tuple[Any, ...], float] = {}
        for latent in self.work.ablated:
            divergences |= self._ablate(latent)
            steered, alphas = self._steer(latent)
            divergences |= steered
            strengths |= alphas
        return Numbers(divergences, strengths)

    def _calls(self, windows: Sequence[InterventionWindow]) -> Iterator[Sequence[InterventionWindow]]:
        size = self.windows_a_call or len(windows)
        for begin in range(0, len(windows), size):
            yield windows[begin : begin + size]

    def _logits(self, ids_WT: Tensor, where_WT: Tensor, delta_WTD: Tensor | None = None) -> Tensor:
        """[n, V] log-probabilities of the next token at the measured tokens, with ``delta_WTD`` added by a hook."""

        def add(_module: Any, _args: Any, out: Any) -> Any:
            if delta_WTD is None:
                return None
            return out + delta_WTD if isinstance(out, Tensor) else (out[0] + delta_WTD, *out[1:])

        handle = self.block.register_forward_hook(add)
        try:
            final = self.work.subject.base(input_ids=ids_WT, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        logits: Tensor = self.head(final[where_WT]).log_softmax(-1)
        return logits

    def _activations(self, ids_WT: Tensor, windows: Sequence[InterventionWindow], latent: int) -> Tensor:
        """[W, T] the latent's activations within its windows, 0 elsewhere, from a forward pass of the whole model."""
        seen: list[Tensor] = []

        def keep(_module: Any, _args: Any, out: Any) -> None:
            seen.append(out if isinstance(out, Tensor) else out[0])

        handle = self.block.register_forward_hook(keep)
        try:
            self.work.subject.base(input_ids=ids_WT, use_cache=False)
        finally:
            handle.remove()
        z_WT = torch.zeros(ids_WT.shape, device=ids_WT.device)
        for row, window in enumerate(windows):
            part = slice(window.position, window.position + window.length)
            z_WT[row, part] = self.work.coder.encode(seen[0][row, part].float())[:, latent]
        z_WT[torch.isin(ids_WT, self.special)] = 0
        return z_WT

    def _measured(self, z_WT: Tensor, windows: Sequence[InterventionWindow], most: int | None) -> Tensor:
        """[W, T] which tokens are measured: from the first firing one to the window's end, or ``most`` of them."""
        where_WT = torch.zeros(z_WT.shape, dtype=torch.bool)
        for row, window in enumerate(windows):
            stop = window.position + window.length
            for start in torch.nonzero(z_WT[row])[:1, 0].tolist():
                where_WT[row, start : stop if most is None else min(stop, start + most)] = True
        return where_WT

    def _ablate(self, latent: int) -> dict[tuple[Any, ...], float]:
        found: dict[tuple[Any, ...], float] = {}
        own = self.work.coder.directions[latent].float()
        moves = [own, *(control * own.norm() for control in self.ablation_controls[latent])]
        for windows in self._calls(self.work.ablated[latent]):
            ids = torch.from_numpy(self.work.contexts[[w.context for w in windows]])
            z = self._activations(ids, windows, latent)
            where = self._measured(z, windows, self.work.ablation.max_positions)
            z = z * where
            clean = self._logits(ids, where)
            row = torch.nonzero(where)[:, 0]
            fires = (z != 0)[where]
            following = torch.roll(ids, -1, 1)[where]
            has_next = torch.nonzero(where)[:, 1] < ids.shape[1] - 1
            for direction, move in enumerate(moves):
                edited = self._logits(ids, where, -z[..., None] * move)
                kl = (clean.exp() * (clean - edited)).sum(-1)
                ce = (clean - edited).gather(1, following[:, None])[:, 0]
                for r in sorted(set(row.tolist())):
                    window = windows[r]
                    key = (latent, window.context, window.position, direction)
                    mine = row == r
                    found["kl_firing", *key] = float(kl[mine & fires].mean())
                    rest = kl[mine & ~fires]
                    found["kl_rest", *key] = float(rest.mean()) if len(rest) else 0.0
                    change = ce[mine & fires & has_next]
                    found["delta_ce", *key] = float(change.mean()) if len(change) else 0.0
        return found

    def _steer(self, latent: int) -> tuple[dict[tuple[Any, ...], float], dict[tuple[Any, ...], float]]:
        settings = self.work.steering
        divergences: dict[tuple[Any, ...], float] = {}
        strengths: dict[tuple[Any, ...], float] = {}
        own = self.work.coder.directions[latent].float()
        length = float(own.norm())
        fit, score = self._prompts(latent, self.work.fitted), self._prompts(latent, self.work.scored)
        for direction, unit in enumerate([own / length, *self.steering_controls[latent]]):
            start = 0.5 * self.activation_norm
            for target in settings.targets:
                found = find_strengths(
                    lambda push, _asked, unit=unit: np.array([self._mean_kl(fit, unit, float(push[0]))]),  # type: ignore[misc]
                    np.array([start]),
                    target,
                    tolerance=settings.tolerance,
                    largest=settings.largest_push * self.activation_norm,
                    max_evaluations=settings.max_evaluations,
                )
                push = float(found.strength[0])
                met = not np.isnan(push)
                key = (latent, target, direction)
                strengths[key] = push / length
                divergences["kl_fit", *key] = float(found.value[0])
                divergences["kl_score", *key] = self._mean_kl(score, unit, push) if met else float("nan")
                start = push if met else start
        return divergences, strengths

    def _prompts(self, latent: int, windows: Windows) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Ids, measured tokens and clean log-probabilities of each call."""
        prompts = []
        for part in self._calls(windows[latent]):
            ids = torch.from_numpy(self.work.contexts[[w.context for w in part]])
            where = self._measured(self._activations(ids, part, latent), part, self.work.steering.max_positions)
            prompts.append((ids, where, self._logits(ids, where)))
        return prompts

    def _mean_kl(self, prompts: Sequence[tuple[Tensor, Tensor, Tensor]], unit: Tensor, push: float) -> float:
        """Mean over prompts of their mean KL over the measured tokens."""
        means = []
        for ids, where, clean in prompts:
            edited = self._logits(ids, where, where[..., None] * (push * unit))
            kl = (clean.exp() * (clean - edited)).sum(-1)
            row = torch.nonzero(where)[:, 0]
            means += [float(kl[row == r].mean()) for r in sorted(set(row.tolist()))]
        return statistics.fmean(means)


def difference(found: Numbers, plain: Numbers) -> Difference:
    """The largest differences of ``found`` from ``plain``, over what ``plain`` has."""
    nats, relative, strength = 0.0, 0.0, 0.0
    for key, expected in plain.divergences.items():
        value = found.divergences.get(key, float("inf"))
        if np.isnan(value) and np.isnan(expected):
            continue
        apart = abs(value - expected) if np.isfinite(value - expected) else float("inf")
        nats = max(nats, apart)
        if abs(expected) >= 0.01:
            relative = max(relative, apart / abs(expected))
    for key, expected in plain.strengths.items():
        value = found.strengths.get(key, float("inf"))
        if np.isnan(value) and np.isnan(expected):
            continue
        apart = abs(value / expected - 1)
        strength = max(strength, apart if np.isfinite(apart) else float("inf"))
    return Difference(nats, relative, strength, len(plain.divergences) + len(plain.strengths))


class Turn(NamedTuple):
    """One turn of all ways: latents and seconds of each."""

    latents: dict[str, int]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    """Of all threads: what other programs on the machine hardly change."""

    def cpu_ratio(self, way: str) -> float:
        """Latents a second of CPU time of ours over those of another way."""
        ours, other = (self.latents[name] / self.cpu_seconds[name] for name in ("ours", way))
        return ours / other

    def ratio(self, way: str) -> float:
        """Latents a second of ours over those of another way."""
        return self.rate("ours") / self.rate(way)

    def rate(self, way: str) -> float:
        """Latents a second."""
        return self.latents[way] / self.seconds[way]


WAYS: dict[str, tuple[int | None, float]] = {"batch": (None, 4.0), "window": (1, 10.0)}
"""The plain ways: windows a call (None for all of a latent's), and how many times as fast ours has to be."""
LARGEST_DIFFERENCE = 1e-4
"""Nats between two ways' divergences, and relative difference of their strengths."""


def take_turns(
    work: CausalWork, turns: int, plain_latents: int, tell: Callable[[str], None] = lambda line: None
) -> tuple[list[Turn], dict[str, Difference]]:
    """Run all ways ``turns`` times; who begins changes, so that a machine that slows down favours none.

    Ours gets all latents of the work in one call, as in a run, the plain ways ``plain_latents`` of them, others each time:
    what a latent costs them does not depend on its company.
    """
    latents = list(work.ablated)
    found: list[Turn] = []
    differences: dict[str, Difference] = {}
    for turn in range(turns):
        taken = [latents[(turn * plain_latents + i) % len(latents)] for i in range(min(plain_latents, len(latents)))]
        part = work.only(sorted(taken))
        calls: dict[str, Callable[[], Numbers]] = {"ours": lambda: ours(work)}
        for way, (windows_a_call, _) in WAYS.items():
            calls[way] = PlainWay(part, windows_a_call)
        numbers: dict[str, Numbers] = {}
        seconds: dict[str, float] = {}
        cpu_seconds: dict[str, float] = {}
        names = list(calls)
        for way in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            tell(f"turn {turn + 1} of {turns}: {way}")
            began, cpu_began = time.perf_counter(), time.process_time()
            numbers[way] = calls[way]()
            seconds[way], cpu_seconds[way] = time.perf_counter() - began, time.process_time() - cpu_began
        found.append(
            Turn({way: len(latents if way == "ours" else part.ablated) for way in calls}, seconds, cpu_seconds)
        )
        for way in WAYS:
            one = difference(numbers["ours"], numbers[way])
            before = differences.get(way, Difference(0.0, 0.0, 0.0, 0))
            differences[way] = Difference(
                max(one.nats, before.nats),
                max(one.relative, before.relative),
                max(one.strength, before.strength),
                one.compared + before.compared,
            )
    return found, differences


def bench_causal(
    *,
    subject: str | None,
    coder: str | None,
    layers: int,
    width: int,
    latents: int,
    windows: int,
    contexts: int,
    turns: int,
    plain_latents: int,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time all ways on a subject and coder from folders, or on random ones of ``layers`` and ``width``.

    Raises:
        ConfigError: only one of ``subject`` and ``coder`` was given, or the coder is not on the output of one block.
    """
    if (subject is None) != (coder is None):
        raise ConfigError("Give --subject and --coder together, or neither for random ones.")
    tell("contexts and windows")
    if subject is not None and coder is not None:
        model = SubjectModel.load(subject, device="cpu")
        attached = attach(model, load_coder(coder))
        tokens = sampled_contexts(model, contexts)
        sparse = attached.coder
    else:
        model, sparse, tokens = _random_world(layers, width, contexts)
    hookpoint = str(model.hookpoint(sparse.hookpoints_in[0]))
    blocks = block_list_name(model.base)
    if (
        sparse.hookpoints_in != sparse.hookpoints_out
        or not hookpoint.startswith(f"{blocks}.")
        or hookpoint.count(".") > 1
    ):
        raise ConfigError(
            f"The plain ways edit the output of one block, and the coder is on {', '.join(sparse.hookpoints_out)}; give a "
            f"coder on {blocks}.<number>."
        )
    work = make_work(model, sparse, tokens, latents, windows)
    found, differences = take_turns(work, turns, plain_latents, tell)
    config = model.config.get_text_config()
    ways = {}
    for way, (_, target) in WAYS.items():
        ratios = [turn.ratio(way) for turn in found]
        one = differences[way]
        exact = one.nats <= LARGEST_DIFFERENCE and one.strength <= LARGEST_DIFFERENCE
        ways[way] = {
            "latents_per_second": statistics.median(turn.rate(way) for turn in found),
            "ratio": statistics.median(ratios),
            "ratio_lowest": min(ratios),
            "ratio_highest": max(ratios),
            "cpu_ratio": statistics.median(turn.cpu_ratio(way) for turn in found),
            "target": target,
            "numbers_compared": one.compared,
            "largest_difference_nats": one.nats,
            "largest_relative_difference": one.relative,
            "largest_difference_of_strengths": one.strength,
            "meets_target": bool(exact and statistics.median(ratios) >= target),
        }
    return {
        "subject": model.name,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "vocabulary": model.vocab_size,
        "hookpoint": hookpoint,
        "coder_latents": sparse.num_latents,
        "latents": len(work.ablated),
        "windows": windows,
        "control_directions": work.ablation.control_directions,
        "contexts": len(tokens),
        "context_length": CONTEXT_LENGTH,
        "turns": turns,
        "plain_latents": plain_latents,
        "latents_per_second": statistics.median(turn.rate("ours") for turn in found),
        "ways": ways,
        "threads": torch.get_num_threads(),
        "machine": machine("cpu"),
    }


def _random_world(layers: int, width: int, contexts: int) -> tuple[SubjectModel, SparseCoder, NDArray[np.int64]]:
    """A random subject with a TopK in the middle; its head is larger than it is initialised, for logits as spread as real ones."""
    with tempfile.TemporaryDirectory() as folder:
        hookpoint = f"layers.{layers // 2 - 1}"
        world = make_world(
            2048, contexts * CONTEXT_LENGTH, Path(folder), width=width, layers=layers, hookpoint=hookpoint
        )
        tokens = np.stack([world.corpus.context(i) for i in range(contexts)]).astype(np.int64)
    with torch.no_grad():
        world.subject.model.get_output_embeddings().weight *= 4.0
    return world.subject, world.attached.coder, tokens
