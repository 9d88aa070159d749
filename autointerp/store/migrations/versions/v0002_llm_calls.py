"""Calls of language models, the budget, scores of the choose side, verdicts, reviews; runs can be paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_STATES_BEFORE = "state IN ('running', 'done', 'failed')"
_STATES = "state IN ('running', 'paused', 'done', 'failed')"


def upgrade() -> None:
    _allow_states(_STATES)
    op.create_table(
        "choice",
        *_of_a_latent("choice"),
        sa.Column("scorer", sa.String(length=80), nullable=False),
        sa.Column("explainer", sa.String(length=80), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        _one_a_scorer("choice"),
    )
    op.create_table(
        "verdict",
        *_of_a_latent("verdict"),
        sa.Column("scorer", sa.String(length=80), nullable=False),
        sa.Column("explainer", sa.String(length=80), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        _one_a_scorer("verdict"),
    )
    op.create_table(
        "review",
        *_of_a_latent("review"),
        sa.Column("action", sa.String(length=8), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("action IN ('accept', 'reject', 'edit')", name=op.f("ck_review_action_known")),
        sa.CheckConstraint("(action = 'edit') = (text IS NOT NULL)", name=op.f("ck_review_text_iff_edited")),
    )
    op.create_index(op.f("ix_review_run_id_source_latent"), "review", ["run_id", "source", "latent"], unique=False)
    op.create_table(
        "llm_call",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("endpoint", sa.String(length=40), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(length=80), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=True),
        sa.Column("outcome", sa.String(length=8), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano_usd", sa.BigInteger(), nullable=True),
        sa.Column("reply", sa.LargeBinary(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("outcome IN ('reply', 'lost')", name=op.f("ck_llm_call_outcome_known")),
        sa.CheckConstraint(
            "key IS NULL OR (outcome = 'reply' AND reply IS NOT NULL)", name=op.f("ck_llm_call_key_has_reply")
        ),
        sa.CheckConstraint("abs(seconds) <= 1.7976931348623157e308", name=op.f("ck_llm_call_seconds_finite")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_llm_call_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_llm_call")),
        sa.UniqueConstraint("key", name=op.f("uq_llm_call_key")),
    )
    op.create_index(op.f("ix_llm_call_run_id_source_latent"), "llm_call", ["run_id", "source", "latent"], unique=False)
    op.create_table(
        "llm_budget",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("spent_tokens", sa.BigInteger(), nullable=False),
        sa.Column("spent_nano_usd", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_llm_budget_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_llm_budget")),
    )
    op.create_table(
        "llm_reservation",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("nano_usd", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_llm_reservation_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "owner", name=op.f("pk_llm_reservation")),
    )


def downgrade() -> None:
    op.drop_table("llm_reservation")
    op.drop_table("llm_budget")
    op.drop_index(op.f("ix_llm_call_run_id_source_latent"), table_name="llm_call")
    op.drop_table("llm_call")
    op.drop_index(op.f("ix_review_run_id_source_latent"), table_name="review")
    op.drop_table("review")
    op.drop_table("verdict")
    op.drop_table("choice")
    op.execute("UPDATE run SET state = 'running' WHERE state = 'paused'")
    _allow_states(_STATES_BEFORE)


def _allow_states(condition: str) -> None:
    # where a constraint cannot be changed (SQLite), the table is made anew and its rows are copied
    with op.batch_alter_table("run") as run:
        run.drop_constraint(op.f("ck_run_state_known"), type_="check")
        run.create_check_constraint(op.f("ck_run_state_known"), sa.text(condition))


def _of_a_latent(table: str) -> tuple[sa.Column[int] | sa.Column[str] | sa.Constraint, ...]:
    return (
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f(f"fk_{table}_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
    )


def _one_a_scorer(table: str) -> sa.Constraint:
    columns = ("run_id", "source", "latent", "scorer", "explainer")
    return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}_{'_'.join(columns)}"))
