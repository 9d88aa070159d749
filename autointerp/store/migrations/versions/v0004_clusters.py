"""What clusters need: workers, duties, counted events, chunks in order and not before a time, runs submitted by a key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_STATES_BEFORE = "state IN ('running', 'paused', 'done', 'failed')"
_STATES = "state IN ('running', 'paused', 'cancelled', 'done', 'failed')"
_READY = ["run_id", "state", "queue", "priority", "ordinal"]
_GROWING = (
    "artefact",
    "choice",
    "chunk",
    "control_row",
    "estimate",
    "explanation",
    "label",
    "llm_call",
    "review",
    "score",
    "screen",
    "timing",
    "verdict",
)
"""Tables whose rows a cluster may number beyond 31 bits; SQLite's keys have 64 already."""


def upgrade() -> None:
    with op.batch_alter_table("run") as run:
        run.add_column(sa.Column("state_note", sa.Text(), nullable=True))
        run.add_column(sa.Column("submitted", sa.Boolean(), nullable=False, server_default=sa.false()))
        run.add_column(sa.Column("submit_key", sa.String(length=200), nullable=True))
        run.create_unique_constraint(op.f("uq_run_submit_key"), ["submit_key"])
        run.drop_constraint(op.f("ck_run_state_known"), type_="check")
        run.create_check_constraint(op.f("ck_run_state_known"), sa.text(_STATES))
    with op.batch_alter_table("chunk") as chunk:
        chunk.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        chunk.add_column(sa.Column("not_before", sa.Double(), nullable=False, server_default="0"))
        chunk.create_check_constraint(
            op.f("ck_chunk_not_before_finite"), sa.text("abs(not_before) <= 1.7976931348623157e308")
        )
        chunk.drop_index(op.f("ix_chunk_run_id_state"))
        chunk.create_index(op.f(f"ix_chunk_{'_'.join(_READY)}"), _READY)
    with op.batch_alter_table("run") as run:
        run.alter_column("submitted", server_default=None)
    with op.batch_alter_table("chunk") as chunk:  # the defaults were for the rows that are there
        chunk.alter_column("priority", server_default=None)
        chunk.alter_column("not_before", server_default=None)
    if op.get_bind().dialect.name == "postgresql":
        for table in _GROWING:
            op.alter_column(table, "id", type_=sa.BigInteger())
            op.execute(f"ALTER SEQUENCE {table}_id_seq AS bigint")
    with op.batch_alter_table("llm_reservation") as reservation:
        reservation.add_column(sa.Column("last_group", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("llm_reservation") as reservation:
        reservation.alter_column("last_group", server_default=None)
    op.create_table(
        "worker",
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("queues", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("started_at", sa.String(length=32), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.Column("rss_bytes", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("abs(seen_at) <= 1.7976931348623157e308", name=op.f("ck_worker_seen_at_finite")),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_worker")),
    )
    op.create_table(
        "event_count",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_event_count_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", name=op.f("pk_event_count")),
    )
    op.create_table(
        "duty",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.CheckConstraint("abs(until) <= 1.7976931348623157e308", name=op.f("ck_duty_until_finite")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_duty")),
    )


def downgrade() -> None:
    for table in ("duty", "event_count", "worker"):
        op.drop_table(table)
    with op.batch_alter_table("llm_reservation") as reservation:
        reservation.drop_column("last_group")
    if op.get_bind().dialect.name == "postgresql":
        for table in _GROWING:
            op.alter_column(table, "id", type_=sa.Integer())
            op.execute(f"ALTER SEQUENCE {table}_id_seq AS integer")
    with op.batch_alter_table("chunk") as chunk:
        chunk.drop_index(op.f(f"ix_chunk_{'_'.join(_READY)}"))
        chunk.create_index(op.f("ix_chunk_run_id_state"), ["run_id", "state"])
        chunk.drop_constraint(op.f("ck_chunk_not_before_finite"), type_="check")
        chunk.drop_column("not_before")
        chunk.drop_column("priority")
    op.execute("UPDATE run SET state = 'failed' WHERE state = 'cancelled'")
    with op.batch_alter_table("run") as run:
        run.drop_constraint(op.f("ck_run_state_known"), type_="check")
        run.create_check_constraint(op.f("ck_run_state_known"), sa.text(_STATES_BEFORE))
        run.drop_constraint(op.f("uq_run_submit_key"), type_="unique")
        run.drop_column("submit_key")
        run.drop_column("submitted")
        run.drop_column("state_note")
