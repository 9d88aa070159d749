"""The tables of a configuration; :class:`~autointerp.config.run.RunConfig` is made of them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

CENSUS_TOKENS = 2_000_000
"""Up to this many tokens every window is kept and counted."""
SAMPLED_WINDOWS = 30_000
LEAST_SHARD_TOKENS, MOST_SHARDS = 262_144, 64
CONTROL_SUFFIX = ".random"
"""Ending of the name of a source's fake coder of random directions."""
_LONGEST_NAME = 80 - len(CONTROL_SUFFIX)
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{_LONGEST_NAME - 1}}}")

ESTIMABLE = ("detection",)
"""Kinds of the scorers whose verdicts can be turned into precision and recall: judges of windows as they come."""

MOST_AUDIT_WINDOWS = 1_500
"""Of an audit label, where ``precision.audit_windows`` does not say."""

Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A table of the file: frozen, strict about types, no unknown keys, field docstrings are its documentation."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


class SubjectConfig(Section):
    """The language model that is explained."""

    model: str = Field(min_length=1)
    """Folder or hub id of the subject model."""
    revision: str | None = None
    """Commit, branch or tag of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format that the subject runs in."""
    device: str = "auto"
    """Where it runs: auto, cpu, cuda or cuda:N (with auto and cuda, extraction uses all GPUs of the machine); does not count for the run's identity."""


class CoderConfig(Section):
    """One sparse coder; each becomes a source of the labelled dictionary."""

    path: str = Field(min_length=1)
    """Folder or hub id of the sparse coder."""
    hookpoint: str | tuple[str, ...] | None = None
    """Module of the subject that it attaches to, or the list of those that a crosscoder reads; needed only where the coder does not say it, or to choose among the coders of a folder."""
    revision: str | None = None
    """Commit, branch or tag of a hub coder."""
    allow_pickle: bool = False
    """Read torch pickles (.pt, .pth, .bin) too, their tensors only; by default they are refused, as they could run code."""
    input_scale: float | tuple[float, ...] | Literal["folded"] | None = None
    """What inputs are multiplied by, for formats that leave it out of the file (a list for a crosscoder's hookpoints), or "folded" where the weights contain it."""
    k: Annotated[int, Field(ge=1)] | None = None
    """Active latents of a token, for formats that leave it out of the file."""
    center_writing_weights: bool | None = None
    """Whether TransformerLens centred the weights of the subject that the coder was trained on, where its file does not say."""
    name: str | None = None
    """Short name of the source (letters, digits, dot, dash, underscore); by default made from path and hookpoint."""

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"a name has 1 to {_LONGEST_NAME} letters, digits, dots, dashes or underscores, a letter or digit first"
            )
        if value is not None and value.endswith(CONTROL_SUFFIX):
            raise ValueError(f"names that end in {CONTROL_SUFFIX!r} are those of the controls; choose another")
        return value


class CorpusConfig(Section):
    """The text on which latents are observed."""

    path: str = Field(min_length=1)
    """Folder, file (.txt, .jsonl, .parquet, .arrow, .npy, ...), hub data set id, or "python-stdlib" (this interpreter's own sources)."""
    text_field: str | None = None
    """Field of a row that holds the text; by default "text"."""
    tokens_field: str | None = None
    """Field of a row that holds token ids, which are read in the place of a text."""
    messages_field: str | None = None
    """Field of a row that holds a conversation (a list of role and content), which the subject's chat template makes a text of."""
    split: str | None = None
    """Split of a data set; by default the one called train, where there is one."""
    subset: str | None = None
    """Configuration of a hub data set, or folder in it."""
    suffixes: tuple[str, ...] = ()
    """Endings of the files that are read from a folder, such as ".md"; an empty list reads the usual kinds of text."""
    tokens_per_document: Annotated[int, Field(ge=1)] | None = None
    """At most this many tokens of each document, a stretch at a random place; by default all of it."""
    packed: bool = False
    """Whether the documents of a side are joined, with the EOS between them, and cut into full contexts; by default a context holds one document."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether each context begins with the BOS: as the subject's tokenizer does it (auto), always or never."""
    revision: str | None = None
    """Commit, branch or tag of a hub data set."""

    @field_validator("tokens_field", "messages_field")
    @classmethod
    def _one_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        before = [name for name in ("text_field", "tokens_field") if info.data.get(name) is not None]
        if value is not None and before:
            raise ValueError(f"corpus.{before[0]} is set too, and a row gives one document: set one of the two")
        return value


class ExtractionConfig(Section):
    """How much text is read, and what is kept of it."""

    num_tokens: Count = 10_000_000
    """Tokens of the corpus to read."""
    context_length: int = Field(default=256, ge=8)
    """Tokens that the subject sees at once."""
    window_length: int = Field(default=32, ge=4, le=128)
    """Tokens of a window, the unit of evidence."""
    top_exemplars: Count = 10
    """Strongest firing windows kept of each latent, per side."""
    sampled_exemplars: Count = 20
    """Uniformly drawn firing windows kept of each latent, per side."""
    pool_windows: Annotated[int, Field(ge=1)] | None = None
    """Uniformly drawn windows kept with all latents' activations, per side; by default all of them up to 2M tokens, then 30,000."""
    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens that go through the subject in one batch; by default what suits the device, and less where memory does not suffice."""
    shard_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one chunk of extraction; by default 262,144, or a 64th of the corpus where that is more."""
    latents_per_pass: Annotated[int, Field(ge=1)] | None = None
    """Latents of each coder that are kept in one pass over the corpus, to bound memory; by default all; does not count for the run's identity."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do with a context on which activations are NaN or infinite: stop with the place, or leave it out and count it."""
    reuse: str | None = Field(default=None, min_length=1)
    """Output folder of a run whose corpus and exemplars are taken over, so that nothing is extracted here; subject, coders, corpus, seed and extraction must be the same."""

    @property
    def pool_size(self) -> int:
        """Windows that a side's pool holds: what was given, else a census up to :data:`CENSUS_TOKENS`, else a sample."""
        if self.pool_windows is not None:
            return self.pool_windows
        # a window holds a token at least, so that no corpus of so many tokens has more windows
        return self.num_tokens if self.num_tokens <= CENSUS_TOKENS else SAMPLED_WINDOWS

    @property
    def shard_size(self) -> int:
        """Tokens of one chunk: what was given, else so many that a kill loses little and partials stay few."""
        return self.shard_tokens or max(LEAST_SHARD_TOKENS, -(-self.num_tokens // MOST_SHARDS))


class ControlsConfig(Section):
    """The floors that stand beside the scores."""

    random_directions: int = Field(default=64, ge=0)
    """Latents of the fake coder of random directions that is labelled beside each real one; 0 for none."""
    shuffled_latents: Count = 200
    """Latents, at least, that are scored under another latent's label (all, where a source has fewer)."""
    null_latents: int = Field(default=20, ge=0)
    """Latents on which every judge is asked about labels that fit nothing, that fit everything, and that are empty; 0 for none."""

    def null_size(self, labelled: int) -> int:
        """Latents, of ``labelled`` ones, on which judges are asked about null labels: a tenth at most, for each costs as much as a
        latent's scores, but two.
        """
        return min(self.null_latents, max(2, labelled // 10), labelled)


class PrecisionConfig(Section):
    """How precision and recall at the natural rate are estimated from a judge's verdicts, and what is asked for it."""

    by: str = "detection"
    """Kind of the scorer whose verdicts are turned into precision and recall at the natural rate; "" for none."""
    screen_windows: int = Field(default=500, ge=0)
    """Windows that the cheap screen shows with each label, in calls of many labels; 0 for no screen."""
    screen_labels: int = Field(default=40, ge=1, le=100)
    """Labels in one call of the screen."""
    screen_per_call: Count = 25
    """Windows in one call of the screen."""
    verified: int = Field(default=10, ge=0)
    """Windows of a label flagged by the screen that the judge itself is asked about, at most, in each round."""
    audit_latents: int = Field(default=60, ge=0)
    """Random labels of a source that get many more judged windows, which check the estimate; 0 for none."""
    audit_windows: Annotated[int, Field(ge=1)] | None = None
    """Further bulk windows judged for each; by default what keeps the audit at half of all other judging, at most 1,500."""
    rounds: int = Field(default=2, ge=1, le=4)
    """Rounds of screening; 1 for no further one where intervals are wide."""
    width: float = Field(default=0.3, gt=0, le=1, allow_inf_nan=False)
    """Width of the 95% interval of precision at or below which a label gets no further round."""
    round_windows: Count = 500
    """Windows that the screen shows with a label in each further round."""

    @field_validator("screen_windows")
    @classmethod
    def _enough_to_draw_from(cls, value: int) -> int:
        if 0 < value < 50:
            raise ValueError(
                "it must be 0 for no screen, or at least 50: the judge's bulk windows are drawn from those that it is shown"
            )
        return value

    @field_validator("by")
    @classmethod
    def _can_be_estimated(cls, value: str) -> str:
        if value and value not in ESTIMABLE:
            known = " or ".join(f'"{kind}"' for kind in ESTIMABLE)
            raise ValueError(f'it must be {known}, whose verdicts are of windows as they come, or "" for no estimate')
        return value

    def audit_size(self, labels: int, judged: int, per_call: int) -> int:
        """Further bulk windows of each audit label, where a source has ``labels`` and ``judged`` windows are judged for each anyway.

        By default whole calls of ``per_call`` windows, where it is more than one. 0 where none is audited.
        """
        audited = min(self.audit_latents, labels)
        if not audited or self.audit_windows is not None:
            return (self.audit_windows or 0) if audited else 0
        most = min(MOST_AUDIT_WINDOWS, labels * judged // (2 * audited))
        return most - most % per_call if most > per_call else most


class StoreConfig(Section):
    """Where results are kept as they are made."""

    url: str | None = None
    """SQLAlchemy URL of the store, such as postgresql://user@host/name; by default autointerp.db in the output folder."""

    @field_validator("url")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None


class BudgetConfig(Section):
    """Most that a run may spend on language models: a hard limit, taken before each call; does not count for the run's identity."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens read and written, all endpoints together."""
    usd: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """US dollars, all endpoints together; every endpoint must have its prices."""


class LabelsConfig(Section):
    """Which explanation becomes the label."""

    choose: Literal["order", "best"] = "order"
    """Take the first explainer's text in the order of the file, or the one that scores best on the choose side."""
    by: str = ""
    """Kind of the scorer that compares explanations on the choose side; by default the first one that judges texts."""
    from_: str | None = Field(default=None, alias="from", min_length=1)
    """Labels made elsewhere, which are only scored here: a run's output folder, a parquet dictionary, Neuronpedia's explanation files."""
    allow_other_split: bool = False
    """Score labels made elsewhere too where windows that were shown to whoever wrote them may be judged; they are marked."""

    @property
    def imported(self) -> dict[str, Any] | None:
        """The explainer table that ``from`` stands for."""
        if self.from_ is None:
            return None
        return {"kind": "imported", "path": self.from_, "allow_other_split": self.allow_other_split}
