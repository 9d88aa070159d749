"""Text that a subject writes with and without edits of latents, with a cache of keys and values.

A prompt's clean pass is made once. Of each row only the tokens from the first edited one on run again (the last one, for the
prediction behind it, always does), on the clean keys and values before it; then token after token, each of which is edited too.
What a token is drawn with depends on the row's seed, the prompt and the token's place in the text alone, so that rows of one
prompt and one seed meet the same chances whatever their edits are and whatever stands beside them in a batch.

Letters in shapes: R rows, n new tokens, P prompts, S positions of the clean prefix, M tokens that run again, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_core.attachment import AttachedCoder, side_by_side
from sae_core.errors import InputError, NonFiniteError, SubjectError
from sae_core.hashing import seed_for
from sae_core.hookpoints import first_tensor
from sae_core.intervention.edits import Edit, Where, intervened, latent_activations
from sae_core.subject import SubjectModel

_LOGITS = 1 << 24
"""Logits that are held at a time: 64 MiB."""
_PROMPT_TOKENS = 1 << 14
"""Most prompt tokens whose clean keys and values are kept at a time."""
_CACHE_BYTES = 1 << 31
"""Most memory of one cache of keys and values, about."""
_GOLDEN, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The constants of splitmix64, as signed numbers."""


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """One text to write."""

    prompt: int
    """Index among the prompts."""
    edit: Edit | None
    """What is done to a latent while it is written; None for the clean subject."""
    seed: int
    """Of the draws. Rows of one prompt and one seed draw with the same chances."""


@dataclass(frozen=True, eq=False)
class Generated:
    """What was written, row by row in the order given."""

    tokens: NDArray[np.int32]
    """[R, n] new tokens, the one that ends the text included; -1 behind it."""
    log_probs: NDArray[np.float64]
    """[R, n] of each token under the subject that wrote it (edited), at temperature 1, nats; NaN behind the end."""
    clean_log_probs: NDArray[np.float64]
    """[R, n] of the same tokens under the clean subject; NaN behind the end."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[R] tokens of each row."""
        return np.asarray((self.tokens >= 0).sum(axis=1), dtype=np.int64)

    @property
    def clean_perplexity(self) -> NDArray[np.float64]:
        """[R] e to the mean surprisal of each row under the clean subject: how odd the text is to it."""
        return np.asarray(np.exp(-np.nansum(self.clean_log_probs, axis=1) / self.lengths), dtype=np.float64)


def end_tokens(subject: SubjectModel) -> frozenset[int]:
    """Tokens that end a text: those that the model's configs name, where the tokenizer calls them special too."""
    found: set[int] = set()
    for config in (subject.config, getattr(subject.model, "generation_config", None)):
        value = getattr(config, "eos_token_id", None)
        found.update(i for i in (value if isinstance(value, (list, tuple)) else [value]) if i is not None)
    return frozenset(found & subject.special_ids)


@torch.inference_mode()
def generate(
    subject: SubjectModel,
    attached: AttachedCoder,
    prompts: Sequence[NDArray[np.integer[Any]]],
    rows: Sequence[GenerationRow],
    *,
    new_tokens: int = 8,
    temperature: float = 1.0,
    ends: frozenset[int] | None = None,
    batch_tokens: int = 16_384,
    progress: Callable[[int], None] = lambda done: None,
) -> Generated:
    """Continue ``prompts`` by at most ``new_tokens`` tokens a row, with the rows' edits in force in prompt and continuation.

    Args:
        subject: the model.
        attached: the coder of the edits' latents.
        prompts: token ids, the BOS included where the subject has one.
        rows: what to write.
        new_tokens: n.
        temperature: of the draws; 0 takes the likeliest token.
        ends: tokens that end a text; None: :func:`end_tokens`.
        batch_tokens: positions (prompts and continuations) of one batch.
        progress: told the rows done.

    Raises:
        InputError: an empty prompt, one that leaves no room for the new tokens, a row of a prompt that is not there, no tokens or a
            negative temperature asked for.
        CoderError: the coder has no such latent.
        SubjectError: a layer of the subject keeps no keys and values.
        NonFiniteError: the subject gave NaN or infinite logits.
    """
    _check(subject, prompts, rows, new_tokens, temperature)
    found = Generated(
        np.full((len(rows), new_tokens), -1, dtype=np.int32),
        np.full((len(rows), new_tokens), np.nan),
        np.full((len(rows), new_tokens), np.nan),
    )
    writer = _Writer(subject, attached, new_tokens, temperature, end_tokens(subject) if ends is None else ends)
    of_prompt: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        of_prompt.setdefault(row.prompt, []).append(number)
    done = 0
    held = _cache_tokens(subject)
    for group in _groups(sorted(of_prompt, key=lambda p: (len(prompts[p]), p)), prompts, min(held, _PROMPT_TOKENS)):
        clean = _CleanPrompts(subject, attached, [np.asarray(prompts[p]) for p in group])
        listed = [(number, place) for place, p in enumerate(group) for number in of_prompt[p]]
        edits = [rows[number].edit for number, _ in listed]
        starts = clean.starts([place for _, place in listed], edits)
        # rows that run equally many tokens again meet in a batch
        again = [len(clean.tokens[place]) - start for (_, place), start in zip(listed, starts, strict=True)]
        order = sorted(range(len(listed)), key=lambda i: (again[i], i))
        for part in _batches(
            order, again, [len(clean.tokens[place]) for _, place in listed], writer, min(held, batch_tokens)
        ):
            mine = [listed[i][0] for i in part]
            out = writer.write(
                clean, [rows[i] for i in mine], [listed[i][1] for i in part], max(again[i] for i in part)
            )
            found.tokens[mine], found.log_probs[mine], found.clean_log_probs[mine] = out
            done += len(part)
            progress(done)
    return found


def _check(
    subject: SubjectModel,
    prompts: Sequence[NDArray[np.integer[Any]]],
    rows: Sequence[GenerationRow],
    new_tokens: int,
    temperature: float,
) -> None:
    if new_tokens < 1 or not temperature >= 0:
        raise InputError(
            f"Generation of {new_tokens} tokens at temperature {temperature:g} was asked for; "
            "give at least 1 token and a temperature of 0 or more."
        )
    for row in rows:
        if not 0 <= row.prompt < len(prompts):
            raise InputError(f"A row names prompt {row.prompt} and there are {len(prompts)}; count them from 0.")
    for number, ids in enumerate(prompts):
        if not 1 <= len(ids) <= subject.max_context - new_tokens:
            raise InputError(
                f"Prompt {number} has {len(ids)} tokens; between 1 and {subject.max_context - new_tokens} leave room for "
                f"{new_tokens} new ones in the subject's {subject.max_context}: cut it at its left."
            )


def _cache_tokens(subject: SubjectModel) -> int:
    """Tokens whose keys and values fit a cache, if keys are as wide as the model (with grouped heads they are narrower)."""
    config = subject.config.get_text_config()
    a_token = 2 * int(config.num_hidden_layers) * int(config.hidden_size) * subject.dtype.itemsize
    return max(1, _CACHE_BYTES // a_token)


def _groups(order: Sequence[int], prompts: Sequence[NDArray[np.integer[Any]]], most_tokens: int) -> Iterator[list[int]]:
    """Prompts of like length whose clean passes are held together."""
    group: list[int] = []
    for p in order:  # ascending by length, so that the last one's is what all are padded to
        if group and (len(group) + 1) * len(prompts[p]) > most_tokens:
            yield group
            group = []
        group.append(p)
    if group:
        yield group


def _batches(
    order: Sequence[int], again: Sequence[int], lengths: Sequence[int], writer: _Writer, batch_tokens: int
) -> Iterator[list[int]]:
    """Rows that run together, in an order in which ``again`` ascends."""
    part: list[int] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i] + again[i] + writer.new_tokens)
        full = (len(part) + 1) * longest > batch_tokens or len(part) >= writer.most_rows
        if part and (full or (writer.needs_like_rows and (again[i], lengths[i]) != (again[part[0]], lengths[part[0]]))):
            yield part
            part, longest = [], lengths[i] + again[i] + writer.new_tokens
        part.append(i)
    if part:
        yield part


class _CleanPrompts:
    """One clean pass of some prompts: keys and values of every layer, and what the coder reads."""

    def __init__(
        self, subject: SubjectModel, attached: AttachedCoder, prompts: Sequence[NDArray[np.integer[Any]]]
    ) -> None:
        from transformers import DynamicCache

        self._subject = subject
        self._attached = attached
        self.tokens = [np.asarray(ids, dtype=np.int64) for ids in prompts]
        padded = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
        for row, ids in zip(padded, self.tokens, strict=True):
            row[: len(ids)] = ids  # padding behind a text is seen by nothing of it
        self.padded = torch.from_numpy(padded).to(subject.device)
        captured: dict[Any, Tensor] = {}
        cache = DynamicCache()
        with subject.hooks(set(attached.read), lambda h, value: captured.__setitem__(h, first_tensor(value))):
            subject.base(input_ids=self.padded, past_key_values=cache, use_cache=True)
        self._layers: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if keys is None or values is None:
                raise SubjectError(
                    f"The subject {subject.name} ({type(subject.base).__name__}) has layers that keep no keys and values, so that "
                    "texts cannot be written from a shared prefix; use a subject whose layers are all attention."
                )
            self._layers.append((keys, values))
        self._read = side_by_side(attached.read, captured)

    def starts(self, places: Sequence[int], edits: Sequence[Edit | None]) -> list[int]:
        """First position of each row that runs again: where its edit begins, the prompt's last position at the latest."""
        last = [len(self.tokens[place]) - 1 for place in places]
        special = sorted(self._subject.special_ids)
        plain = [np.flatnonzero(~np.isin(ids, special)) for ids in self.tokens]
        starts = list(last)
        pairs: dict[tuple[int, int], list[int]] = {}
        for i, (place, edit) in enumerate(zip(places, edits, strict=True)):
            if edit is None or edit.does_nothing:
                continue
            if edit.where is Where.EVERYWHERE:
                starts[i] = min([*plain[place][plain[place] >= edit.first][:1].tolist(), last[i]])
            else:
                pairs.setdefault((place, edit.latent), []).append(i)
        for place, group in itertools.groupby(sorted(pairs), key=lambda pair: pair[0]):
            at = torch.from_numpy(plain[place]).to(self._read.device)
            x = self._read[place, at]
            for _, latent in group:
                z, _ = latent_activations(self._attached.coder, x, torch.full((len(x),), latent, device=x.device))
                firing = plain[place][torch.nonzero(z).flatten().cpu().numpy()]
                for i in pairs[place, latent]:
                    first = edits[i].first  # type: ignore[union-attr]
                    starts[i] = min([*firing[firing >= first][:1].tolist(), last[i]])
        return starts

    def prefix(self, places: Sequence[int], starts: NDArray[np.int64]) -> tuple[Any, Tensor]:
        """A cache of the keys and values of each row's prompt before its start, padded on the left, and its mask [R, S]."""
        from transformers import DynamicCache

        device = self.padded.device
        longest = int(starts.max())
        at = np.arange(longest) - (longest - starts)[:, None]
        index = torch.from_numpy(np.maximum(at, 0)).to(device)
        row = torch.as_tensor(list(places), device=device)[:, None]
        cache = DynamicCache()
        if longest:
            for number, layer in enumerate(self._layers):
                keys, values = (kept.transpose(1, 2)[row, index].transpose(1, 2) for kept in layer)
                cache.update(keys, values, number)
        return cache, torch.from_numpy((at >= 0).astype(np.int64)).to(device)


class _Writer:
    """Writes batches of rows."""

    def __init__(
        self,
        subject: SubjectModel,
        attached: AttachedCoder,
        new_tokens: int,
        temperature: float,
        ends: frozenset[int],
    ) -> None:
        self._subject = subject
        self._attached = attached
        self.new_tokens = new_tokens
        self._temperature = temperature
        self._ends = torch.tensor(sorted(ends), dtype=torch.long, device=subject.device)
        self.most_rows = max(1, _LOGITS // subject.vocab_size)
        """Rows whose logits are held at a time."""
        text_config = subject.config.get_text_config()
        self.needs_like_rows = getattr(text_config, "sliding_window", None) is not None
        """Whether padding inside of a row would move the edge of a sliding window."""

    def write(
        self, clean: _CleanPrompts, rows: Sequence[GenerationRow], places: Sequence[int], again: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        """``(tokens, log_probs, clean_log_probs)`` [R, n] of rows whose last ``again`` prompt tokens run again."""
        prompts = [clean.tokens[place] for place in places]
        noise = [seed_for(row.seed, "draws", *ids.tolist()) for row, ids in zip(rows, prompts, strict=True)]
        with intervened(self._subject, self._attached, [row.edit for row in rows]):
            tokens, log_probs = self._drawn(clean, prompts, places, again, noise)
        clean_log_probs = log_probs.copy()
        edited = [i for i, row in enumerate(rows) if row.edit is not None and not row.edit.does_nothing]
        size = max(1, self.most_rows // self.new_tokens)
        for start in range(0, len(edited), size):
            part = edited[start : start + size]
            clean_log_probs[part] = self._read_cleanly(clean, [places[i] for i in part], tokens[part])
        return tokens, log_probs, clean_log_probs

    def _drawn(
        self,
        clean: _CleanPrompts,
        prompts: Sequence[NDArray[np.int64]],
        places: Sequence[int],
        again: int,
        noise: Sequence[int],
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        device = self._subject.device
        tokens = np.full((len(prompts), self.new_tokens), -1, dtype=np.int32)
        log_probs = np.full(tokens.shape, np.nan)
        lengths = np.array([len(ids) for ids in prompts])
        cache, mask = clean.prefix(places, np.maximum(lengths - again, 0))
        ids_RM = np.zeros((len(prompts), again), dtype=np.int64)
        for row, ids in zip(ids_RM, prompts, strict=True):
            row[max(0, again - len(ids)) :] = ids[-again:]
        position = np.arange(again) + (lengths - again)[:, None]
        going = torch.ones(len(prompts), dtype=torch.bool, device=device)
        inputs = torch.from_numpy(ids_RM).to(device)
        at = torch.from_numpy(position).to(device)
        for step in range(self.new_tokens):
            mask = torch.cat([mask, (at >= 0).to(mask)], dim=1)
            logits = self._logits(inputs, mask, at.clamp_min(0), cache, 1)[:, -1]
            drawn = self._draw(logits, noise, step)
            log_prob = logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0].double()
            alive = going.cpu().numpy()
            tokens[alive, step] = drawn.cpu().numpy()[alive]
            log_probs[alive, step] = log_prob.cpu().numpy()[alive]
            going &= ~torch.isin(drawn, self._ends)
            if not bool(going.any()):
                break
            inputs, at = drawn[:, None], at[:, -1:] + 1
        return tokens, log_probs

    def _read_cleanly(
        self, clean: _CleanPrompts, places: Sequence[int], tokens: NDArray[np.int32]
    ) -> NDArray[np.float64]:
        """[R, n] log-probabilities of the tokens that rows have written, under the subject without edits."""
        device = self._subject.device
        last = np.array([len(clean.tokens[place]) - 1 for place in places])
        cache, mask = clean.prefix(places, last)
        before = np.array([[clean.tokens[place][-1]] for place in places])
        ids = torch.from_numpy(np.concatenate([before, np.maximum(tokens[:, :-1], 0)], axis=1)).to(device)
        at = torch.from_numpy(last[:, None] + np.arange(tokens.shape[1])).to(device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        logits = self._logits(ids, mask, at, cache, 0)
        chosen = torch.from_numpy(np.maximum(tokens, 0).astype(np.int64)).to(device)
        log_probs = logits.log_softmax(-1).gather(2, chosen[..., None])[..., 0].double().cpu().numpy()
        return np.where(tokens >= 0, log_probs, np.nan)

    def _logits(self, ids: Tensor, mask: Tensor, position: Tensor, cache: Any, keep: int) -> Tensor:
        """[R, T, V] float32 of the last ``keep`` tokens; 0 for all. Raises NonFiniteError."""
        out = self._subject.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = out.logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise NonFiniteError(
                f"The subject {self._subject.name} gave NaN or infinite logits while it wrote; use dtype float32 or weaker edits."
            )
        return logits

    def _draw(self, logits_RV: Tensor, noise: Sequence[int], step: int) -> Tensor:
        """[R] tokens: of the logits' distribution, by the largest sum of a logit and its noise (Gumbel)."""
        if self._temperature == 0:
            return logits_RV.argmax(-1)
        distinct, row = np.unique(np.array(noise, dtype=np.int64), return_inverse=True)
        seeds = torch.from_numpy(distinct).to(logits_RV.device)
        gumbel = gumbel_noise(seeds, step, logits_RV.shape[1])
        noisy = logits_RV.double() / self._temperature + gumbel[torch.from_numpy(row).to(logits_RV.device)]
        return noisy.argmax(-1)


def gumbel_noise(seeds: Tensor, step: int, vocabulary: int) -> Tensor:
    """[len(seeds), V] standard Gumbel noise, float64, on the device of ``seeds`` (int64).

    By hash (splitmix64) of seed, step and token: no number depends on which others are asked for.
    """

    def mixed(state: Tensor) -> Tensor:
        for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
            state = (state ^ _shifted(state, shift)) * factor
        return state ^ _shifted(state, 31)

    places = torch.arange(1, max(step + 1, vocabulary) + 1, device=seeds.device) * _GOLDEN
    key = mixed(mixed(seeds) + places[step])
    uniform = (_shifted(mixed(key[:, None] + places[:vocabulary]), 12).double() + 0.5) / 2.0**52
    return -torch.log(-torch.log(uniform))


def _shifted(state: Tensor, bits: int) -> Tensor:
    """int64 shifted to the right as if it had no sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
