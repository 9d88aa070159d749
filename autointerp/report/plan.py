"""The plan of a run on the terminal: what ``--dry-run`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from autointerp.planning.plan import PlanTotal, RunPlan
from autointerp.planning.planned import CHARACTERS_PER_TOKEN
from autointerp.report.figures import UNDEFINED


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print calls, tokens and dollars of each component, their sums, and whether the budget suffices."""
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
        planned, calls = line.planned, line.calls_per_latent
        total = plan.total([line])
        table.add_row(
            Text(line.what),
            *([Text(line.endpoint)] if several else []),
            f"{calls:g}",
            _count(calls * planned.prompt_tokens),
            _count(calls * planned.answer_tokens),
            _count(line.latents),
            *_sums(total),
        )
    for endpoint in plan.endpoints if several else ():
        total = plan.total(line for line in plan.lines if line.endpoint == endpoint)
        table.add_row(Text("all of it", style="dim"), Text(endpoint), *[""] * 4, *_sums(total))
    mean, whole = plan.per_latent(), plan.total()
    table.add_row(
        Text("together", style="bold"),
        *([""] if several else []),
        f"{mean.calls:g}",
        _count(mean.usage.input_tokens),
        _count(mean.usage.output_tokens),
        _count(plan.latents),
        *_sums(whole),
    )
    console.print(table)
    console.print(Text(_notes(plan, whole), style="dim"), width=min(console.width, 110))
    for sentence in plan.over_budget:
        console.print(Text(f"Over budget: {sentence}.", style="bold red"))


def _notes(plan: RunPlan, whole: PlanTotal | None) -> str:
    said = [
        "Calls, prompt and answer tokens are those of one latent. "
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


def _sums(total: PlanTotal | None) -> list[str]:
    """Calls, tokens and dollars in all."""
    if total is None:
        return [UNDEFINED] * 3
    cost = total.usage.cost_usd
    tokens = total.usage.input_tokens + total.usage.output_tokens
    return [_count(total.calls), _count(tokens), UNDEFINED if cost is None else f"{cost:,.2f}"]


def _count(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:,.0f}"
