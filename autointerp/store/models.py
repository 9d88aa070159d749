"""The tables of the store. ``migrations/versions`` makes them; a test compares the two.

Terminal rows are unique by their keys: one explanation for each (run, source, latent, explainer, side), one
score for each (run, source, latent, scorer, explainer), one label for each (run, source, latent).

Money is counted in whole nano-dollars (1e-9 US dollars), so that sums are exact in any order of adding.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from autointerp.store.column_types import FiniteFloat, JsonText, SafeText, UtcTime, utc_now

_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
LARGEST_DOUBLE = "1.7976931348623157e308"


def finite(column: str) -> CheckConstraint:
    """NaN sorts above every number in PostgreSQL, so one comparison refuses NaN and both infinities there."""
    return CheckConstraint(f"abs({column}) <= {LARGEST_DOUBLE}", name=f"{column}_finite")


BigId = BigInteger().with_variant(Integer, "sqlite")
"""Of tables that get rows every night for years. SQLite numbers only INTEGER keys by itself, which have 64 bits there."""


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=_CONVENTION)
    type_annotation_map = {
        float: FiniteFloat,
        str: SafeText,
        datetime: UtcTime,
        dict[str, Any]: JsonText,
        list[str]: JsonText,
    }


class Run(Base):
    """One stored configuration and what became of it."""

    __tablename__ = "run"
    __table_args__ = (
        UniqueConstraint("digest", "ordinal"),
        UniqueConstraint("submit_key"),
        CheckConstraint("state IN ('running', 'paused', 'cancelled', 'done', 'failed')", name="state_known"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64))
    ordinal: Mapped[int]
    config: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default="running")
    state_note: Mapped[str | None]
    """Why it is paused, failed or cancelled."""
    submitted: Mapped[bool] = mapped_column(default=False)
    """Whether a cluster's workers do it; else whoever began it does."""
    submit_key: Mapped[str | None] = mapped_column(String(200))
    """What whoever submitted it calls this submission, so that a second one with the same key is the same run."""
    folder: Mapped[str]
    code_version: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
    owner: Mapped[str | None] = mapped_column(String(40))
    """Name of the token that asked the server for it; None for everybody's."""


class SourceRow(Base):
    """One coder on one subject in one run; ``record`` is a sae_core.records.Source."""

    __tablename__ = "source"
    __table_args__ = (UniqueConstraint("run_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(80))
    subject: Mapped[str]
    subject_revision: Mapped[str]
    hookpoint: Mapped[str]
    coder: Mapped[str]
    coder_fingerprint: Mapped[str] = mapped_column(String(64))
    num_latents: Mapped[int]
    control: Mapped[bool]


class Chunk(Base):
    """The unit of leased work. ``lease_until`` is seconds since 1970 by the database's clock, 0 for nobody's."""

    __tablename__ = "chunk"
    __table_args__ = (
        UniqueConstraint("run_id", "stage", "source", "ordinal"),
        Index(None, "run_id", "state", "queue", "priority", "ordinal"),
        CheckConstraint("state IN ('waiting', 'ready', 'running', 'done', 'failed', 'poisoned')", name="state_known"),
        finite("lease_until"),
        finite("not_before"),
        finite("seconds"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    stage: Mapped[str] = mapped_column(String(40))
    queue: Mapped[str] = mapped_column(String(16))
    priority: Mapped[int] = mapped_column(default=0)
    """Of the ready chunks of a queue those with the lowest come first: stages further on in the run, so that what was begun is finished."""
    source: Mapped[str] = mapped_column(String(80), default="")
    ordinal: Mapped[int]
    spec: Mapped[dict[str, Any]]
    planned_units: Mapped[int] = mapped_column(BigInteger, default=1)
    state: Mapped[str] = mapped_column(String(16), default="waiting")
    owner: Mapped[str] = mapped_column(SafeText, default="")
    lease_until: Mapped[float] = mapped_column(default=0.0)
    not_before: Mapped[float] = mapped_column(default=0.0)
    """Seconds since 1970 by the database's clock before which nobody should claim it."""
    fence: Mapped[int] = mapped_column(default=0)
    attempts: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float] = mapped_column(default=0.0)
    units: Mapped[int] = mapped_column(BigInteger, default=0)
    error: Mapped[str | None]


class ExplanationRow(Base):
    """One autointerp.explanation.Explanation: a text or a typed failure."""

    __tablename__ = "explanation"
    __table_args__ = (
        UniqueConstraint("run_id", "source", "latent", "explainer", "side"),
        CheckConstraint("(text = '') = (failure_kind IS NOT NULL)", name="text_or_failure"),
        finite("cost_usd"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    explainer: Mapped[str] = mapped_column(String(80))
    side: Mapped[str] = mapped_column(String(8))
    text: Mapped[str]
    payload: Mapped[dict[str, Any]]
    exemplar_ids: Mapped[list[str]]
    prompt_hash: Mapped[str | None] = mapped_column(String(64))
    model: Mapped[str | None]
    input_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cost_usd: Mapped[float]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ScoreRow(Base):
    """One autointerp.score.Score; ``explainer`` is "" for a score of the latent itself."""

    __tablename__ = "score"
    __table_args__ = (UniqueConstraint("run_id", "source", "latent", "scorer", "explainer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    scorer: Mapped[str] = mapped_column(String(80))
    explainer: Mapped[str] = mapped_column(String(80), default="")
    values: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LabelRow(Base):
    """The chosen text of a latent, or the state that stands in its place."""

    __tablename__ = "label"
    __table_args__ = (
        UniqueConstraint("run_id", "source", "latent"),
        CheckConstraint("status IN ('labelled', 'dead', 'rare', 'failed')", name="status_known"),
        CheckConstraint("(status = 'labelled') = (text IS NOT NULL)", name="text_iff_labelled"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    text: Mapped[str | None]
    text_output: Mapped[str | None]
    explainer: Mapped[str | None] = mapped_column(String(80))
    decided_by: Mapped[str] = mapped_column(String(80))
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ControlRow(Base):
    """What a scorer gives where it should give nothing (METHODS 6): shuffled, null, token_rule, ..."""

    __tablename__ = "control_row"
    __table_args__ = (UniqueConstraint("run_id", "source", "kind", "component", "latent"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    kind: Mapped[str] = mapped_column(String(40))
    component: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    values: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]


class Artefact(Base):
    """A versioned value that a barrier computed (a plan, a permutation, a prior); written once."""

    __tablename__ = "artefact"
    __table_args__ = (UniqueConstraint("run_id", "kind", "version"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    kind: Mapped[str] = mapped_column(String(120))
    version: Mapped[int] = mapped_column(Integer, default=1)
    value: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Timing(Base):
    """Wall time that no chunk accounts for, such as loading the subject."""

    __tablename__ = "timing"
    __table_args__ = (finite("seconds"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(80))
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ChoiceRow(Base):
    """One autointerp.score.Score that was counted on the choose side, by which a label is chosen and nothing published."""

    __tablename__ = "choice"
    __table_args__ = (UniqueConstraint("run_id", "source", "latent", "scorer", "explainer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    scorer: Mapped[str] = mapped_column(String(80))
    explainer: Mapped[str] = mapped_column(String(80), default="")
    values: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class VerdictRow(Base):
    """What a judge said of every single window that one scorer showed it; ``items`` is the scorer's own JSON."""

    __tablename__ = "verdict"
    __table_args__ = (UniqueConstraint("run_id", "source", "latent", "scorer", "explainer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    scorer: Mapped[str] = mapped_column(String(80))
    explainer: Mapped[str] = mapped_column(String(80), default="")
    items: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ScreenRow(Base):
    """What a cheap screen, and the judge after it, said of one label's bulk windows in one stage; ``items`` is that stage's JSON."""

    __tablename__ = "screen"
    __table_args__ = (UniqueConstraint("run_id", "source", "latent", "stage", "explainer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    stage: Mapped[str] = mapped_column(String(40))
    explainer: Mapped[str] = mapped_column(String(80))
    items: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class EstimateRow(Base):
    """Precision and recall of one label at the natural rate, as one stage's posterior over a source's labels has them."""

    __tablename__ = "estimate"
    __table_args__ = (UniqueConstraint("run_id", "source", "latent", "stage", "explainer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    stage: Mapped[str] = mapped_column(String(40))
    explainer: Mapped[str] = mapped_column(String(80))
    values: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    failure_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ReviewRow(Base):
    """A person's word on a label; rows are only ever added, and the last one of a latent holds."""

    __tablename__ = "review"
    __table_args__ = (
        Index(None, "run_id", "source", "latent"),
        CheckConstraint("action IN ('accept', 'reject', 'edit')", name="action_known"),
        CheckConstraint("(action = 'edit') = (text IS NOT NULL)", name="text_iff_edited"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    action: Mapped[str] = mapped_column(String(8))
    text: Mapped[str | None]
    by: Mapped[str]
    note: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LLMCall(Base):
    """One call that was paid, or may have been: the ledger, and the raw replies under their keys.

    ``key`` is that of the request where the reply can be used again; it is NULL for a lost call (which was or may have
    been paid and left no reply), for a probe of a server, and where the reply was dropped.
    """

    __tablename__ = "llm_call"
    __table_args__ = (
        UniqueConstraint("key"),
        Index(None, "run_id", "source", "latent"),
        CheckConstraint("outcome IN ('reply', 'lost')", name="outcome_known"),
        CheckConstraint("key IS NULL OR (outcome = 'reply' AND reply IS NOT NULL)", name="key_has_reply"),
        finite("seconds"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    key: Mapped[str | None] = mapped_column(String(64))
    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"))
    endpoint: Mapped[str] = mapped_column(String(40))
    model: Mapped[str]
    purpose: Mapped[str] = mapped_column(String(80))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int | None]
    outcome: Mapped[str] = mapped_column(String(8))
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_nano_usd: Mapped[int | None] = mapped_column(BigInteger)
    reply: Mapped[bytes | None] = mapped_column(LargeBinary)
    seconds: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LLMBudget(Base):
    """What a run has spent: the sum over its llm_call rows, kept so that it need not be added up for every call."""

    __tablename__ = "llm_budget"

    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    spent_tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    spent_nano_usd: Mapped[int] = mapped_column(BigInteger, default=0)


CALL_OWNER = "call/"
"""Begins the owner of what is reserved for one call that goes on when its process dies (in a batch); no process is called so."""
ENDED = ("done", "cancelled")
"""States of a run in which nobody waits for such calls any more: it is not expected to go on."""


class LLMReservation(Base):
    """What one process has reserved for its calls under way, or what is reserved for one call that outlives its process (in a
    batch); it counts as spent until it is settled."""

    __tablename__ = "llm_reservation"

    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0)
    nano_usd: Mapped[int] = mapped_column(BigInteger, default=0)
    last_group: Mapped[int] = mapped_column(BigInteger, default=0)
    """Number of the process's last group of calls that is committed: tells what became of a commit whose answer was lost.

    For one call: when it was first reserved for, microseconds since 1970, times two, and one more where somebody joined it since.
    """


class WorkerRow(Base):
    """A process that works chunks of a cluster's queues, and when it was last heard of."""

    __tablename__ = "worker"
    __table_args__ = (finite("seen_at"),)

    owner: Mapped[str] = mapped_column(String(200), primary_key=True)
    """As in leases: autointerp.pipeline.owner.Owner."""
    name: Mapped[str] = mapped_column(String(200))
    queues: Mapped[list[str]]
    code_version: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    seen_at: Mapped[float]
    """Seconds since 1970 by the database's clock."""
    rss_bytes: Mapped[int] = mapped_column(BigInteger, default=0)


class EventCount(Base):
    """How often something happened in a run that no other row tells: a lease that ran out, a write that was fenced off."""

    __tablename__ = "event_count"

    run_id: Mapped[str] = mapped_column(String(32), ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    count: Mapped[int] = mapped_column(BigInteger, default=0)


class Duty(Base):
    """Something that one process of a cluster does at a time, such as reconciling, and until when it is its turn."""

    __tablename__ = "duty"
    __table_args__ = (finite("until"),)

    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    owner: Mapped[str] = mapped_column(String(200))
    until: Mapped[float]
    """Seconds since 1970 by the database's clock."""


class ScheduleRow(Base):
    """A dictionary whose labels are scored every night, and how; ``config`` is an autointerp.nightly.schedule.Schedule."""

    __tablename__ = "schedule"

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    config: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class NightRow(Base):
    """One night of a schedule: what was planned, what became of it, and what was found."""

    __tablename__ = "night"
    __table_args__ = (
        UniqueConstraint("schedule", "date"),
        CheckConstraint("state IN ('due', 'running', 'settled', 'empty')", name="state_known"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    schedule: Mapped[str] = mapped_column(String(40), ForeignKey("schedule.name", ondelete="CASCADE"))
    date: Mapped[str] = mapped_column(String(10))
    """Local date on which its window begins, 2026-01-31."""
    state: Mapped[str] = mapped_column(String(16), default="due")
    """``empty``: there was nothing to score, and no run was made."""
    ends_at: Mapped[datetime]
    """When its window ends."""
    run_id: Mapped[str | None] = mapped_column(String(32))
    """Of its run, also after that was deleted."""
    counts: Mapped[dict[str, Any]]
    anchors: Mapped[dict[str, Any]]
    """Scores of the anchors and of the controls, from which the next nights' noise is estimated."""
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    settled_at: Mapped[datetime | None]


class LatestScore(Base):
    """The newest score that a schedule's nights gave a label, and by what: sha256, shortened, of each thing that decides it."""

    __tablename__ = "latest_score"
    __table_args__ = (UniqueConstraint("schedule", "source", "latent", "scorer"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    schedule: Mapped[str] = mapped_column(String(40), ForeignKey("schedule.name", ondelete="CASCADE"))
    source: Mapped[str] = mapped_column(String(80))
    latent: Mapped[int]
    scorer: Mapped[str] = mapped_column(String(80))
    coder: Mapped[str] = mapped_column(String(64))
    corpus: Mapped[str] = mapped_column(String(64))
    prompt: Mapped[str] = mapped_column(String(64))
    judge: Mapped[str] = mapped_column(String(64))
    settings: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(64))
    values: Mapped[dict[str, Any]]
    failure_kind: Mapped[str | None] = mapped_column(String(40))
    run_id: Mapped[str] = mapped_column(String(32))
    night: Mapped[str] = mapped_column(String(10))
    """Date of the night that scored it."""
    scored_at: Mapped[datetime]


class TokenRow(Base):
    """Somebody or something that may ask the server, known by a secret of which only a hash is kept.

    Rows are never deleted and names never given twice, so that nobody comes by the runs of a namesake.
    """

    __tablename__ = "token"
    __table_args__ = (UniqueConstraint("digest"),)

    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the secret, hexadecimal."""
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    max_jobs: Mapped[int | None]
    """Most runs and exports that it may have queued or under way; None for any number."""
    budget_tokens: Mapped[int | None] = mapped_column(BigInteger)
    """Most tokens of language models that all its runs together may spend; None for no bound but each run's own."""
    budget_nano_usd: Mapped[int | None] = mapped_column(BigInteger)


class BrowserSession(Base):
    """A browser in which somebody has shown a token: it has a cookie instead, of which a hash is kept."""

    __tablename__ = "browser_session"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    token: Mapped[str] = mapped_column(String(40), ForeignKey("token.name", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime]


class CatalogueRow(Base):
    """Something that the operator lets users of the server ask for by its name: a source, an endpoint or a corpus."""

    __tablename__ = "catalogue"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    settings: Mapped[dict[str, Any]]
    """The tables of a run's configuration that it stands for; keys of endpoints are names of environment variables."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class JobRow(Base):
    """Something that the server was asked to have done: a run, or an export of one. It outlives the server."""

    __tablename__ = "job"
    __table_args__ = (
        UniqueConstraint("asked_by", "key"),
        Index(None, "kind", "state"),
        CheckConstraint("state IN ('queued', 'running', 'paused', 'cancelled', 'done', 'failed')", name="state_known"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    """``run`` or ``export``."""
    name: Mapped[str]
    state: Mapped[str] = mapped_column(String(16), default="queued")
    wanted: Mapped[str | None] = mapped_column(String(16))
    """``paused`` or ``cancelled``, from when somebody says so until its process has ended."""
    owner: Mapped[str | None] = mapped_column(String(40))
    """As of its run: name of the token that asked for it; None for everybody's."""
    asked_by: Mapped[str] = mapped_column(String(40), default="")
    """The same with a text for nobody, so that keys are unique to whoever gives them."""
    key: Mapped[str | None] = mapped_column(String(200))
    """What whoever asked for it calls this request, so that a second one with the same key is the same job."""
    digest: Mapped[str] = mapped_column(String(64))
    """sha256 of the request: whether two with the same key are the same."""
    folder: Mapped[str]
    """Where its results go."""
    run_id: Mapped[str | None] = mapped_column(String(32))
    """The run that is made or exported; None until it has begun, also after it was undone."""
    request: Mapped[dict[str, Any]]
    """What its process is to do."""
    process: Mapped[str] = mapped_column(SafeText, default="")
    """Who does it or did it last, as in leases: autointerp.pipeline.owner.Owner."""
    error_kind: Mapped[str | None] = mapped_column(String(40))
    """Name of the exception that ended it."""
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
