"""The columns of the labelled dictionary: one row a latent, flat, documented and versioned (METHODS 7).

Adding a column that may be null keeps the version's first number; renaming one, removing one or
changing what it means raises it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from sae_core.errors import InputError

SCHEMA_VERSION = "1.3"

_TEXT = pa.string()
_COUNT = pa.int64()
_REAL = pa.float64()
_TEXTS = pa.list_(pa.string())
_COUNTS = pa.list_(pa.int64())
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the dictionary."""

    name: str
    type: Any
    """The pyarrow type."""
    description: str
    """One sentence for the docs; it stands in the parquet field's metadata as well."""
    required: bool = False
    """Never null; every other column is null where the figure is not defined or was not measured, and never NaN."""


COLUMNS: tuple[Column, ...] = (
    Column("source", _TEXT, "Name of the coder on its subject that the latent belongs to.", True),
    Column("subject", _TEXT, "Folder or hub id of the subject model, as it was given.", True),
    Column("subject_revision", _TEXT, "Hub commit of the subject, or the sha256 of a local folder's weights."),
    Column("hookpoint", _TEXT, "Module of the subject whose output the coder writes to.", True),
    Column("coder_fingerprint", _TEXT, "sha256 of the coder's weights.", True),
    Column("corpus_fingerprint", _TEXT, "sha256 of the corpus that was read.", True),
    Column("latent", _COUNT, "Index of the latent in the coder.", True),
    Column(
        "status",
        _TEXT,
        "`labelled`, `dead` (never fired), `rare` (too few windows on a side, or none to score on) or `failed`.",
        True,
    ),
    Column("failure", _TEXT, "Kind of the failure where the status is `failed`."),
    Column(
        "failure_message", _TEXT, "One sentence on why there is no label, with the numbers, for rare and failed ones."
    ),
    Column("num_tokens", _COUNT, "Tokens that were read and count (no BOS, EOS or padding)."),
    Column("fire_count", _COUNT, "Tokens on which the latent fires."),
    Column("fire_rate", _REAL, "`fire_count / num_tokens`."),
    Column("num_windows", _COUNT, "Windows that were read."),
    Column("num_windows_firing", _COUNT, "Windows in which the latent fires."),
    Column("max_activation", _REAL, "Activation of the largest magnitude, with its sign."),
    Column("context_dependence", _REAL, "Share of the firing windows that fall silent when run alone after BOS."),
    Column("label", _TEXT, "The chosen label: on which input the latent fires."),
    Column("label_output", _TEXT, "The chosen label of what the latent makes the subject write."),
    Column("explainer", _TEXT, "Kind of the explainer that wrote the label."),
    Column(
        "label_sides",
        _TEXT,
        "Of a label made elsewhere, the windows that its writer was shown: apart by the `same` sides as here, `held_back` from scoring, or `unknown` (some may have been scored).",
    ),
    Column("explainer_model", _TEXT, "Language model that the explainer asked; null where none took part."),
    Column("prompt_hash", _TEXT, "sha256 of the explainer's prompt; null where there was none."),
    Column(
        "precision", _REAL, "Share of the windows in which the label holds where the latent fires, at its natural rate."
    ),
    Column("precision_low", _REAL, "Lower bound of its 95% interval."),
    Column("precision_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "precision_method",
        _TEXT,
        "How precision and recall came about: `counted` on all windows, or `judged` on a sample.",
    ),
    Column(
        "precision_basis",
        _TEXT,
        "What the interval rests on: `counted`, `own`, `borrowed`, `judge_limited` or `unresolved`.",
    ),
    Column(
        "precision_failure",
        _TEXT,
        "Why a judged label has no precision, e.g. `too_few_windows` or the judge's own failure; null where it has one.",
    ),
    Column("precision_own_low", _REAL, "Lower bound from the latent's own windows alone (Clopper-Pearson)."),
    Column("precision_own_high", _REAL, "Upper bound from the latent's own windows alone (Clopper-Pearson)."),
    Column(
        "best_precision", _REAL, "Precision that a perfect label would show with this judge, at this latent's rate."
    ),
    Column("natural_rate", _REAL, "Share of the windows that may be judged in which the latent fires."),
    Column("prior_num_latents", _COUNT, "Labels over which a judged precision was estimated together."),
    Column("prior_num_yes", _COUNT, "Confirmed yeses on the bulk of the text among their verdicts."),
    Column("recall", _REAL, "Share of the windows in which the latent fires where the label holds."),
    Column("recall_low", _REAL, "Lower bound of its 95% interval."),
    Column("recall_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "near_precision",
        _REAL,
        "Precision among windows near the label alone: firing ones, and silent ones with a neighbour or the token.",
    ),
    Column("near_precision_low", _REAL, "Lower bound of its 95% interval."),
    Column("near_precision_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "precision_above_half",
        _REAL,
        "Precision if the latent counts as firing only above half of its largest activation.",
    ),
    Column("recall_above_half", _REAL, "Recall of the windows above half of the latent's largest activation."),
    Column("recall_weighted", _REAL, "Recall with each window weighted by its activation."),
    Column("auprc", _REAL, "Area under the precision-recall curve at the natural rate, of a judge with probabilities."),
    Column("auprc_low", _REAL, "Lower bound of its 95% interval."),
    Column("auprc_high", _REAL, "Upper bound of its 95% interval."),
    Column("f1", _REAL, "Harmonic mean of precision and recall."),
    Column("f1_low", _REAL, "Lower bound of its 95% interval."),
    Column("f1_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "token_rule_f1", _REAL, "F1, on the same windows, of the tokens on which the latent fires more often than not."
    ),
    Column(
        "balanced_accuracy",
        _REAL,
        "Mean of recall and of the share of silent windows left silent, for comparison only.",
    ),
    Column(
        "written_precision",
        _REAL,
        "Share of the texts that a language model wrote to match the label on which the latent fires; not the text it reads.",
    ),
    Column("written_precision_low", _REAL, "Lower bound of its 95% interval (Clopper-Pearson)."),
    Column("written_precision_high", _REAL, "Upper bound of its 95% interval (Clopper-Pearson)."),
    Column(
        "written_near_rate", _REAL, "Share of the near misses that it wrote on which the latent fires all the same."
    ),
    Column("written_near_rate_low", _REAL, "Lower bound of its 95% interval (Clopper-Pearson)."),
    Column("written_near_rate_high", _REAL, "Upper bound of its 95% interval (Clopper-Pearson)."),
    Column("written_matching", _COUNT, "Texts written to match the label that were run on the subject."),
    Column("written_near", _COUNT, "Near misses that were run on the subject."),
    Column("correlation", _REAL, "Correlation of predicted and true activations over all score tokens."),
    Column("correlation_low", _REAL, "Lower bound of its 95% interval over documents."),
    Column("correlation_high", _REAL, "Upper bound of its 95% interval over documents."),
    Column(
        "causal_effect",
        _REAL,
        "Mean ln KL of ablating the latent minus that of random pushes of the same size; 0 = like a random push.",
    ),
    Column("causal_effect_low", _REAL, "Lower bound of its 95% interval."),
    Column("causal_effect_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "causal_random_low",
        _REAL,
        "Effect under which 2.5% of single random pushes of this size fall.",
    ),
    Column(
        "causal_random_high",
        _REAL,
        "Effect over which 2.5% of single random pushes fall: a `causal_effect` above it is more than a random push does.",
    ),
    Column(
        "causal_z",
        _REAL,
        "Where the effect stands among single random pushes of this size at the same tokens, as a normal score.",
    ),
    Column(
        "causal_q",
        _REAL,
        "Benjamini-Yekutieli q-value of the effect among single random pushes of this size at the same tokens.",
    ),
    Column("ablation_kl", _REAL, "Mean KL in nats that ablating the latent makes at its firing tokens."),
    Column(
        "direct_share",
        _REAL,
        "Share of the change of the logits at firing tokens that goes straight through the residual stream to the head.",
    ),
    Column(
        "acts_at",
        _TEXT,
        "What carries the largest share of it: `direct`, or the later block that answers to the latent, e.g. `layers.3`.",
    ),
    Column(
        "ablation_kl_typical",
        _REAL,
        "KL of the typical window, e to the mean of ln KL: beside `control_kl_typical` it is what `causal_effect` compares.",
    ),
    Column("ablation_kl_typical_low", _REAL, "Lower bound of its 95% interval over windows."),
    Column("ablation_kl_typical_high", _REAL, "Upper bound of its 95% interval over windows."),
    Column("control_kl_typical", _REAL, "The same of random pushes of the same size at the same tokens."),
    Column("control_kl", _REAL, "Mean KL in nats of random pushes of the same size at the same tokens."),
    Column(
        "ablation_kl_rest", _REAL, "Mean KL in nats at the later tokens of the window on which the latent is silent."
    ),
    Column("control_kl_rest", _REAL, "The same of random pushes."),
    Column(
        "delta_ce",
        _REAL,
        "Mean change in nats of the true next token's cross-entropy at the firing tokens; positive = ablation hurts.",
    ),
    Column("delta_ce_low", _REAL, "Lower bound of its 95% interval over windows."),
    Column("delta_ce_high", _REAL, "Upper bound of its 95% interval over windows."),
    Column("control_delta_ce", _REAL, "The same of random pushes."),
    Column("ablation_share", _REAL, "Share of the ablated windows whose KL exceeds the noise floor."),
    Column(
        "causal_chosen",
        _TEXT,
        "Why the latent was ablated: `all` were, a `random` one that stands for the dictionary, or one that the `screen` by `attribution_kl` chose and that stands for itself alone; null where it was not ablated.",
    ),
    Column(
        "attribution_kl",
        _REAL,
        "KL in nats, over all later predictions of its context, that ablating the latent at one firing token makes, estimated from gradients alone.",
    ),
    Column(
        "attribution_kl_total",
        _REAL,
        "`attribution_kl` times `fire_count`: what that comes to over the corpus.",
    ),
    Column(
        "attribution",
        _REAL,
        "Nats that such an ablation adds to the cross-entropy of the true later tokens, to first order; positive = ablation hurts.",
    ),
    Column("steering_kl", _REAL, "Mean KL in nats that steering reached on the score side."),
    Column("steering_kl_median", _REAL, "Median over the score side's prompts of the KL that steering reached."),
    Column("steering_kl_largest_share", _REAL, "Share of the summed KL that the largest prompt makes."),
    Column("steering_target", _REAL, "KL in nats that steering aimed at."),
    Column("steering_alpha", _REAL, "Strength that steering needed, in multiples of the decoder row."),
    Column(
        "steering_effect",
        _REAL,
        "ln of the strength that random directions need for the same KL over the latent's own, mean over those that reach it; null where fewer than half of them do.",
    ),
    Column("steering_effect_low", _REAL, "Lower bound of its 95% interval over those directions."),
    Column("steering_effect_high", _REAL, "Upper bound of its 95% interval over those directions."),
    Column(
        "steering_controls_unreachable",
        _COUNT,
        "Random directions that reach the KL at no strength tried; `steering_effect` is a mean over the others, rather too low than too high then.",
    ),
    Column(
        "steering_failure",
        _TEXT,
        "Why steering gave no figure, e.g. `unreachable`; null where not tried or not failed.",
    ),
    Column(
        "lens_auroc",
        _REAL,
        "AUROC over the vocabulary of the direction's logit-lens tokens by how much steering raised them on held-out prompts.",
    ),
    Column("lens_auroc_se", _REAL, "Its standard error over those prompts."),
    Column("lens_auroc_control", _REAL, "Mean AUROC of random directions with their own logit-lens tokens."),
    Column("lens_recall50", _REAL, "Share of the logit-lens tokens among the 50 that steering raised most."),
    Column("lens_recall50_control", _REAL, "Mean share of random directions with their own logit-lens tokens."),
    Column(
        "output_tokens_auroc",
        _REAL,
        "The same AUROC of the tokens that `label_output` is written from: those that the latent raised on random prompts.",
    ),
    Column("output_tokens_auroc_se", _REAL, "Its standard error over the held-out prompts."),
    Column("output_tokens_auroc_control", _REAL, "Mean AUROC of other latents' such tokens on the same change."),
    Column("output_tokens_recall50", _REAL, "Share of these tokens among the 50 that steering raised most."),
    Column("output_tokens_recall50_control", _REAL, "Mean share of other latents' such tokens."),
    Column(
        "substitution",
        _REAL,
        "Share of the latent's effect on the subject that the label's predictions keep in its place: 1 all, 0 none, below 0 worse.",
    ),
    Column("substitution_low", _REAL, "Lower bound of its 95% interval; null where there is no lower end."),
    Column("substitution_high", _REAL, "Upper bound of its 95% interval."),
    Column("substitution_shuffled", _REAL, "The same share with the predictions of another latent's label."),
    Column(
        "substitution_failure",
        _TEXT,
        "Why a label that was put in its latent's place has no figure, e.g. `no_effect`; null where not tried or not failed.",
    ),
    Column(
        "steered_surprisal_low",
        _REAL,
        "Lower bound of the 95% interval of `steered_surprisal_score`, over texts and labels.",
    ),
    Column("steered_surprisal_high", _REAL, "Upper bound of it."),
    Column(
        "steered_surprisal_z",
        _REAL,
        "`steered_surprisal_score` in standard deviations of what other latents' labels gain on the same texts.",
    ),
    Column("steered_surprisal_above", _REAL, "Share of these other labels that gain less; .5 by chance."),
    Column("steered_choice_low", _REAL, "Lower bound of the 95% interval of `steered_choice_score` (Clopper-Pearson)."),
    Column("steered_choice_high", _REAL, "Upper bound of it."),
    Column("steered_rating_low", _REAL, "Lower bound of the 95% interval of `steered_rating_score` over instructions."),
    Column("steered_rating_high", _REAL, "Upper bound of it."),
    Column(
        "steered_rating_target",
        _REAL,
        "KL in nats of the strength that did best on the instructions which `steered_rating_score` leaves out.",
    ),
    Column(
        "output_label_steered_surprisal_score",
        _REAL,
        "What steering makes `label_output` gain a token, less what other latents' gain.",
    ),
    Column("output_label_steered_surprisal_low", _REAL, "Lower bound of its 95% interval."),
    Column("output_label_steered_surprisal_high", _REAL, "Upper bound of its 95% interval."),
    Column("output_label_steered_surprisal_above", _REAL, "Share of other labels that gain less; .5 by chance."),
    Column(
        "output_label_steered_surprisal_failure",
        _TEXT,
        "Why it is not known, e.g. `collapsed`; null where it is, or where nobody asked.",
    ),
    Column(
        "output_label_steered_choice_score",
        _REAL,
        "Share of texts written under steering that a judge finds by `label_output`, .33 by chance.",
    ),
    Column("output_label_steered_choice_low", _REAL, "Lower bound of its 95% interval."),
    Column("output_label_steered_choice_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "output_label_steered_choice_failure",
        _TEXT,
        "Why it is not known, e.g. `collapsed`; null where it is, or where nobody asked.",
    ),
    Column(
        "output_label_steered_rating_score",
        _REAL,
        "Harmonic mean of concept (by `label_output`), instruction and fluency, 0 to 2.",
    ),
    Column("output_label_steered_rating_low", _REAL, "Lower bound of its 95% interval."),
    Column("output_label_steered_rating_high", _REAL, "Upper bound of its 95% interval."),
    Column(
        "output_label_steered_rating_failure",
        _TEXT,
        "Why it is not known, e.g. `collapsed`; null where it is, or where nobody asked.",
    ),
    Column("top_promoted_tokens", _TEXTS, "Tokens that the latent's direction raises most, strongest first."),
    Column("top_suppressed_tokens", _TEXTS, "Tokens that it lowers most, strongest first."),
    Column("neighbours", _COUNTS, "Latents of the same coder with the nearest decoder rows, nearest first."),
    Column(
        "judge_model",
        _TEXT,
        "Language models that judged, as they name themselves, joined by commas; null where none answered or was asked.",
    ),
    Column("num_judged", _COUNT, "Windows that were judged or counted for precision and recall."),
    Column("num_failed", _COUNT, "Judgements that failed and are in no figure."),
    Column("input_tokens", _COUNT, "Tokens sent to language models for this latent."),
    Column("output_tokens", _COUNT, "Tokens that they answered."),
    Column("cost_usd", _REAL, "What that cost, in US dollars."),
    Column("run_id", _TEXT, "Id of the run that made the row.", True),
    Column("created_at", _TIME, "When the label was made, UTC."),
    Column("code_version", _TEXT, "Version of autointerp that made it.", True),
)


@cache
def dictionary_columns(scorers: tuple[str, ...] = ()) -> tuple[Column, ...]:
    """:data:`COLUMNS` and, before the provenance, ``<kind>_score`` and ``<kind>_failure`` for each scorer kind that is named."""
    known = {column.name for column in COLUMNS}
    extra = tuple(
        column
        for kind in dict.fromkeys(scorers)
        for column in (
            Column(f"{kind}_score", _REAL, f"The `{kind}` scorer's own headline figure (see its page)."),
            Column(
                f"{kind}_failure",
                _TEXT,
                f"Why the `{kind}` scorer has no figure, e.g. `truncated`; null where it has one.",
            ),
        )
    )
    for column in extra:
        if column.name in known or not column.name.isidentifier():
            raise InputError(
                f"a scorer would write the column {column.name!r}; name a scorer by letters, digits and underscores."
            )
    at = next(index for index, column in enumerate(COLUMNS) if column.name == "judge_model")
    return COLUMNS[:at] + extra + COLUMNS[at:]


def figures_of(kind: str, kinds: Iterable[str]) -> set[str]:
    """Names, without the scorer's own before them, of the columns in which a scorer may leave a number.

    ``kinds``: all scorers, whose names tell columns that belong to another one.
    """
    others = tuple(f"{other}_" for other in kinds if other != kind and not kind.startswith(f"{other}_"))
    numbers = [c.name for c in dictionary_columns((kind,)) if c.type in (_REAL, _COUNT) and not c.required]
    return {
        name.removeprefix(f"{kind}_") for name in numbers if name.startswith(f"{kind}_") or not name.startswith(others)
    }


def dictionary_schema(scorers: Sequence[str] = ()) -> pa.Schema:
    """The pyarrow schema of the dictionary; descriptions are the fields' metadata, the version is the schema's."""
    return _schema(tuple(scorers))


@cache
def _schema(scorers: tuple[str, ...]) -> pa.Schema:
    fields = [
        pa.field(column.name, column.type, nullable=not column.required, metadata={"description": column.description})
        for column in dictionary_columns(scorers)
    ]
    return pa.schema(fields, metadata={"autointerp.schema_version": SCHEMA_VERSION})


def schema_markdown() -> str:
    """The table of docs/dictionary.md."""
    lines = ["| column | type | null | what it holds |", "|---|---|---|---|"]
    for column in COLUMNS:
        null = "never" if column.required else "possible"
        lines.append(f"| `{column.name}` | {_type_name(column.type)} | {null} | {column.description} |")
    return "\n".join(lines) + "\n"


def _type_name(kind: Any) -> str:
    names = {_TEXT: "text", _COUNT: "int64", _REAL: "float64", _TEXTS: "list of text", _COUNTS: "list of int64"}
    return names.get(kind, "timestamp, UTC")
