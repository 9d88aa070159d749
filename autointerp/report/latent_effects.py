"""One latent's causal figures as lines of a table, each with its interval and what it is to be compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from autointerp.report.figures import UNDEFINED, interval_text, known, share_text, signed_text

if TYPE_CHECKING:
    import pandas as pd


class Line(NamedTuple):
    """A line of the table."""

    name: str
    value: str
    bounds: str
    note: str


def effect_lines(row: pd.Series[Any]) -> list[Line]:
    """What ablating, steering and replacing the latent did; nothing of what was not measured."""
    lines = [_effect(row), _typical(row), _rest(row), _cross_entropy(row), _where(row), _screen(row)]
    return [line for line in [*lines, *_steering(row), _substitution(row)] if line is not None]


def _effect(row: pd.Series[Any]) -> Line | None:
    value = known(row.get("causal_effect"))
    if value is None:
        return None
    random = interval_text(known(row.get("causal_random_low")), known(row.get("causal_random_high")), signed=True)
    note = "ln; 0 = like the mean random push" + (f", {random} = 95% of single ones" if random else "")
    q = known(row.get("causal_q"))
    return Line(
        "causal effect",
        signed_text(value),
        _bounds(row, "causal_effect"),
        note + ("" if q is None else f"; q {share_text(q, 3)}"),
    )


def _typical(row: pd.Series[Any]) -> Line | None:
    typical, control = known(row.get("ablation_kl_typical")), known(row.get("control_kl_typical"))
    mean = known(row.get("ablation_kl"))
    if typical is None:
        return None if mean is None else Line("ablation kl", _nats(mean), "", "nats at its firing tokens")
    low, high = known(row.get("ablation_kl_typical_low")), known(row.get("ablation_kl_typical_high"))
    bounds = "" if low is None or high is None else f"[{_nats(low)}, {_nats(high)}]"
    note = f"nats at its firing tokens in the typical window (mean {_nats(mean)})"
    return Line(
        "ablation kl", _nats(typical), bounds, note + ("" if control is None else f"; random pushes {_nats(control)}")
    )


def _rest(row: pd.Series[Any]) -> Line | None:
    value, control = known(row.get("ablation_kl_rest")), known(row.get("control_kl_rest"))
    if value is None:
        return None
    return Line(
        "  later tokens",
        _nats(value),
        "",
        "where it is silent" + ("" if control is None else f"; random pushes {_nats(control)}"),
    )


def _cross_entropy(row: pd.Series[Any]) -> Line | None:
    value, control = known(row.get("delta_ce")), known(row.get("control_delta_ce"))
    if value is None:
        return None
    note = "nats of the true next token; above 0 = ablation hurts"
    bounds = interval_text(known(row.get("delta_ce_low")), known(row.get("delta_ce_high")), 3, signed=True)
    return Line(
        "cross-entropy",
        signed_text(value, 3),
        bounds,
        note + ("" if control is None else f"; random pushes {signed_text(control, 3)}"),
    )


def _where(row: pd.Series[Any]) -> Line | None:
    share, place = known(row.get("direct_share")), row.get("acts_at")
    if share is None or not isinstance(place, str):
        return None
    most = "straight to the output" if place == "direct" else f"most through {place}"
    return Line(
        "direct share",
        share_text(share),
        "",
        f"of the change goes straight to the output; {most}" if place != "direct" else f"of the change goes {most}",
    )


def _screen(row: pd.Series[Any]) -> Line | None:
    value = known(row.get("attribution_kl"))
    if value is None:
        return None
    ablated = known(row.get("causal_effect")) is not None
    return Line(
        "attribution kl", _nats(value), "", "nats a firing token, from gradients" + ("" if ablated else "; not ablated")
    )


def _steering(row: pd.Series[Any]) -> list[Line]:
    reached, target = known(row.get("steering_kl")), known(row.get("steering_target"))
    if reached is None:
        why = row.get("steering_failure")
        return [Line("steering", UNDEFINED, "", why.replace("_", " "))] if isinstance(why, str) else []
    asked = "" if target is None else f" of {_nats(target)} asked"
    lines = [
        Line(
            "steering kl",
            _nats(reached),
            "",
            f"nats reached on other prompts{asked}, at {share_text(known(row.get('steering_alpha')))} times its direction",
        )
    ]
    effect = known(row.get("steering_effect"))
    if effect is not None:
        lines.append(
            Line(
                "steering effect",
                signed_text(effect),
                "",
                "ln of the strength that random directions need over its own",
            )
        )
    for name, words in (("lens", "logit lens"), ("output_tokens", "output label")):
        auroc = known(row.get(f"{name}_auroc"))
        if auroc is not None:
            control = share_text(known(row.get(f"{name}_auroc_control")))
            lines.append(
                Line(f"{words} tokens", share_text(auroc), "", f"AUROC: do they rise under steering; control {control}")
            )
    return lines


def _substitution(row: pd.Series[Any]) -> Line | None:
    value = known(row.get("substitution"))
    if value is None:
        return None
    control = known(row.get("substitution_shuffled"))
    note = "of its effect stays with the label's predictions in its place"
    return Line(
        "substitution",
        share_text(value),
        _bounds(row, "substitution"),
        note + ("" if control is None else f"; another label's {share_text(control)}"),
    )


def _bounds(row: pd.Series[Any], column: str) -> str:
    return interval_text(
        known(row.get(f"{column}_low")), known(row.get(f"{column}_high")), signed=column == "causal_effect"
    )


def _nats(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3g}"
