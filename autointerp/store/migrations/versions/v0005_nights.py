"""Scoring every night: schedules, their nights, and the newest score of every label."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "schedule",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_schedule")),
    )
    op.create_table(
        "night",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("schedule", sa.String(length=40), nullable=False),
        sa.Column("date", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("ends_at", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("anchors", sa.Text(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("settled_at", sa.String(length=32), nullable=True),
        sa.CheckConstraint("state IN ('due', 'running', 'settled', 'empty')", name=op.f("ck_night_state_known")),
        sa.ForeignKeyConstraint(["schedule"], ["schedule.name"], name=op.f("fk_night_schedule"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_night")),
        sa.UniqueConstraint("schedule", "date", name=op.f("uq_night_schedule_date")),
    )
    op.create_table(
        "latest_score",
        sa.Column("id", _BIG_ID, nullable=False),
        sa.Column("schedule", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("scorer", sa.String(length=80), nullable=False),
        *(
            sa.Column(name, sa.String(length=64), nullable=False)
            for name in ("coder", "corpus", "prompt", "judge", "settings", "label")
        ),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("night", sa.String(length=10), nullable=False),
        sa.Column("scored_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["schedule"], ["schedule.name"], name=op.f("fk_latest_score_schedule"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_latest_score")),
        sa.UniqueConstraint(
            "schedule", "source", "latent", "scorer", name=op.f("uq_latest_score_schedule_source_latent_scorer")
        ),
    )


def downgrade() -> None:
    for table in ("latest_score", "night", "schedule"):
        op.drop_table(table)
