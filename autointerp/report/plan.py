"""The plan of a run on the terminal: what ``--dry-run`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.planning.plan import PlanTotal, RunPlan
from autointerp.planning.planned import CHARACTERS_PER_TOKEN
from autointerp.report.figures import UNDEFINED, percent_text, share_text

if TYPE_CHECKING:
    from autointerp.planning.expected_precision import ExpectedPrecision


def print_plan(plan: RunPlan, console: Console, expected: ExpectedPrecision | None = None) -> None:
    """Print calls, tokens and dollars of each component, their sums, whether the budget suffices, and the intervals to expect."""
    if not plan.lines:
        console.print(Text("This run asks no language model: it takes no tokens and costs nothing."))
        return
    several = len(plan.endpoints) > 1
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")  # what gives way on a narrow terminal; figures never do
    if several:
        table.add_column("endpoint", no_wrap=True)
    for name in ("calls", "prompt", "answer", "latents", "all\ncalls", "all\ntokens", "US$"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in plan.lines:
        total = plan.total([line])
        table.add_row(
            Text(line.what),
            *([Text(line.endpoint)] if several else []),
            _calls(line.calls_per_latent),
            _count(line.prompt_per_latent),
            _count(line.answer_per_latent),
            _count(line.latents),
            *_sums(total),
        )
    for endpoint in plan.endpoints if several else ():
        total = plan.total(line for line in plan.lines if line.endpoint == endpoint)
        table.add_row(Text("all of it", style="dim"), Text(endpoint), *[""] * 4, *_sums(total))
    whole = plan.total()
    for name, sums in (("together", plan), ("at most", plan.at_most)):
        if sums == plan and name != "together":
            continue  # nothing hangs on answers
        mean = sums.per_latent()
        table.add_row(
            Text(name, style="bold"),
            *([""] if several else []),
            _calls(mean.calls),
            _count(mean.usage.input_tokens),
            _count(mean.usage.output_tokens),
            _count(plan.latents),
            *_sums(sums.total()),
        )
    console.print(table)
    console.print(Text(_notes(plan, whole), style="dim"), width=min(console.width, 110))
    for sentence in plan.over_budget:
        console.print(Text(f"Over budget: {sentence}.", style="bold red"))
    if expected is not None:
        _print_expected(expected, console)


def _print_expected(expected: ExpectedPrecision, console: Console) -> None:
    """How wide the interval of precision will be, by the firing rate, and what that supposes."""
    widths, supposed = expected.widths, expected.population
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\n95% interval of precision: width", overflow="fold")
    for number, rate in enumerate(widths.pi):
        table.add_column(f"{'fires in' if number == 0 else ''}\n{100 * rate:g}%", justify="right", no_wrap=True)
    for name, row in (
        ("median label", widths.median),
        ("a tenth of the labels is below", widths.low),
        ("a tenth of the labels is above", widths.high),
        ("median, from a label's own windows alone", widths.own),
    ):
        table.add_row(Text(name), *(share_text(float(width)) for width in row))
    console.print()
    console.print(table)
    neighbour, token, _, bulk = (f"{100 * 10**rate:.1g}%" for rate in supposed.log10_rate)
    yes, no = supposed.recall
    said = [
        "For latents that fire in that share of the windows, from a simulation of the run's own estimate with all rounds done. It supposes "
        f"a judge that does not err, and labels to which it says yes on {share_text(yes / (yes + no), 1)} of the firing windows and, in the "
        f"median, on {neighbour} of the silent ones where a neighbour fires, {token} of those with the latent's token and {bulk} of all "
        f"others; a screen flags {percent_text(supposed.screen_sees)} of what the judge says yes to and {100 * supposed.screen_cries:g}% of "
        "the rest. The lines for flagged windows and for what is asked again rest on the same.",
        "For latents that seldom fire an interval can be narrow because precision is near 0.",
    ]
    if expected.labels is not None and expected.labels < expected.fewest:
        said.append(
            f"{expected.labels} labels borrow less from each other than the {expected.fewest} that are simulated here."
        )
    console.print(Text(" ".join(said), style="dim"), width=min(console.width, 110))


def _notes(plan: RunPlan, whole: PlanTotal | None) -> str:
    said = [
        "Calls, prompt and answer tokens are those of one latent; their sums leave out what is asked about some latents alone. "
        f"Estimates at {CHARACTERS_PER_TOKEN:g} characters a token and {plan.sizes.window_tokens:.0f} tokens a window; latents "
        "that are dead, rare or failed ask less, repairs of bad answers come on top."
    ]
    if plan.latents is None:
        said.append("How many latents the coder has is not known before it is read, so there are no sums.")
    if whole is not None and whole.usage.cost_usd is None:
        said.append("The price of an endpoint is not known: give its usd_per_million_input_tokens and _output_tokens.")
    cheaper = None if whole is None else whole.cached_cost_usd
    if whole is not None and cheaper is not None and cheaper < (whole.usage.cost_usd or 0.0):
        said.append(f"With the static parts in a prefix cache it costs ${cheaper:,.2f}.")
    return " ".join(said)


def _calls(value: float) -> str:
    """Calls for one latent: whole ones as they are, a part of a call with two decimals."""
    text = f"{value:,.2f}".rstrip("0").rstrip(".")
    return "<0.01" if text == "0" and value > 0 else text


def _sums(total: PlanTotal | None) -> list[str]:
    """Calls, tokens and dollars in all."""
    if total is None:
        return [UNDEFINED] * 3
    cost = total.usage.cost_usd
    tokens = total.usage.input_tokens + total.usage.output_tokens
    return [_count(total.calls), _count(tokens), UNDEFINED if cost is None else f"{cost:,.2f}"]


def _count(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:,.0f}"
