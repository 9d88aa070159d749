"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "run",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("code_version", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("finished_at", sa.String(length=32), nullable=True),
        sa.CheckConstraint("state IN ('running', 'done', 'failed')", name=op.f("ck_run_state_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run")),
        sa.UniqueConstraint("digest", "ordinal", name=op.f("uq_run_digest_ordinal")),
    )
    op.create_table(
        "artefact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=120), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_artefact_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artefact")),
        sa.UniqueConstraint("run_id", "kind", "version", name=op.f("uq_artefact_run_id_kind_version")),
    )
    op.create_table(
        "chunk",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("stage", sa.String(length=40), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("planned_units", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'ready', 'running', 'done', 'failed', 'poisoned')", name=op.f("ck_chunk_state_known")
        ),
        sa.CheckConstraint("abs(lease_until) <= 1.7976931348623157e308", name=op.f("ck_chunk_lease_until_finite")),
        sa.CheckConstraint("abs(seconds) <= 1.7976931348623157e308", name=op.f("ck_chunk_seconds_finite")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_chunk_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chunk")),
        sa.UniqueConstraint("run_id", "stage", "source", "ordinal", name=op.f("uq_chunk_run_id_stage_source_ordinal")),
    )
    op.create_index(op.f("ix_chunk_run_id_state"), "chunk", ["run_id", "state"], unique=False)
    op.create_table(
        "control_row",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("component", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_control_row_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_control_row")),
        sa.UniqueConstraint(
            "run_id",
            "source",
            "kind",
            "component",
            "latent",
            name=op.f("uq_control_row_run_id_source_kind_component_latent"),
        ),
    )
    op.create_table(
        "explanation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("explainer", sa.String(length=80), nullable=False),
        sa.Column("side", sa.String(length=8), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("exemplar_ids", sa.Text(), nullable=False),
        sa.Column("prompt_hash", sa.String(length=64), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("input_tokens", sa.Integer(), nullable=False),
        sa.Column("output_tokens", sa.Integer(), nullable=False),
        sa.Column("cost_usd", sa.Double(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("(text = '') = (failure_kind IS NOT NULL)", name=op.f("ck_explanation_text_or_failure")),
        sa.CheckConstraint("abs(cost_usd) <= 1.7976931348623157e308", name=op.f("ck_explanation_cost_usd_finite")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_explanation_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_explanation")),
        sa.UniqueConstraint(
            "run_id",
            "source",
            "latent",
            "explainer",
            "side",
            name=op.f("uq_explanation_run_id_source_latent_explainer_side"),
        ),
    )
    op.create_table(
        "label",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("text_output", sa.Text(), nullable=True),
        sa.Column("explainer", sa.String(length=80), nullable=True),
        sa.Column("decided_by", sa.String(length=80), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("(status = 'labelled') = (text IS NOT NULL)", name=op.f("ck_label_text_iff_labelled")),
        sa.CheckConstraint("status IN ('labelled', 'dead', 'rare', 'failed')", name=op.f("ck_label_status_known")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_label_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint("run_id", "source", "latent", name=op.f("uq_label_run_id_source_latent")),
    )
    op.create_table(
        "score",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("source", sa.String(length=80), nullable=False),
        sa.Column("latent", sa.Integer(), nullable=False),
        sa.Column("scorer", sa.String(length=80), nullable=False),
        sa.Column("explainer", sa.String(length=80), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.Column("failure_kind", sa.String(length=40), nullable=True),
        sa.Column("failure_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_score_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_score")),
        sa.UniqueConstraint(
            "run_id",
            "source",
            "latent",
            "scorer",
            "explainer",
            name=op.f("uq_score_run_id_source_latent_scorer_explainer"),
        ),
    )
    op.create_table(
        "source",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("subject_revision", sa.Text(), nullable=False),
        sa.Column("hookpoint", sa.Text(), nullable=False),
        sa.Column("coder", sa.Text(), nullable=False),
        sa.Column("coder_fingerprint", sa.String(length=64), nullable=False),
        sa.Column("num_latents", sa.Integer(), nullable=False),
        sa.Column("control", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_source_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_source")),
        sa.UniqueConstraint("run_id", "name", name=op.f("uq_source_run_id_name")),
    )
    op.create_table(
        "timing",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.CheckConstraint("abs(seconds) <= 1.7976931348623157e308", name=op.f("ck_timing_seconds_finite")),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_timing_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timing")),
    )


def downgrade() -> None:
    op.drop_table("timing")
    op.drop_table("source")
    op.drop_table("score")
    op.drop_table("label")
    op.drop_table("explanation")
    op.drop_table("control_row")
    op.drop_index(op.f("ix_chunk_run_id_state"), table_name="chunk")
    op.drop_table("chunk")
    op.drop_table("artefact")
    op.drop_table("run")
