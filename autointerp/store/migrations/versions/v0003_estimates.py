"""What a screen says of labels' windows, and precision and recall at the natural rate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table("screen", *_of_a_label("screen", "items"))
    op.create_table("estimate", *_of_a_label("estimate", "values"))


def downgrade() -> None:
    op.drop_table("estimate")
    op.drop_table("screen")


def _of_a_label(table: str, content: str) -> tuple[sa.Column[int] | sa.Column[str] | sa.Constraint, ...]:
    key = ("run_id", "source", "latent", "stage", "explainer")
    return (
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(length=40), nullable=False),
        sa.Column("explainer", sa.String(length=80), nullable=False),
        sa.Column(content, sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f(f"fk_{table}_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{table}")),
        sa.UniqueConstraint(*key, name=op.f(f"uq_{table}_{'_'.join(key)}")),
    )
