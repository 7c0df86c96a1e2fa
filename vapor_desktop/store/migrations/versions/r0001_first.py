"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "commands",
        sa.Column("command_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("verb", sa.String(), nullable=False),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("asked_by", sa.String(), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("taken_by", sa.String(), nullable=True),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("command_id", name=op.f("pk_commands")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_commands_taken_by"), "commands", ["taken_by"], unique=False)
    op.create_table(
        "engines",
        sa.Column("engine_id", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("engine_id", name=op.f("pk_engines")),
    )
    op.create_table(
        "events",
        sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("protection_id", sa.String(), nullable=True),
        sa.Column("site_id", sa.String(), nullable=True),
        sa.Column("severity", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_at"), "events", ["at"], unique=False)
    op.create_index(op.f("ix_events_protection_id_at"), "events", ["protection_id", "at"], unique=False)
    op.create_table(
        "protections",
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("vm_uuid", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("protection_id", name=op.f("pk_protections")),
    )
    op.create_index(op.f("ix_protections_vm_uuid"), "protections", ["vm_uuid"], unique=False)
    op.create_table(
        "settings",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_settings")),
    )
    op.create_table(
        "sites",
        sa.Column("site_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_sites")),
    )
    op.create_table(
        "clocks",
        sa.Column("site_id", sa.String(), nullable=False),
        sa.Column("offset_s", sa.Float(), nullable=False),
        sa.Column("error_s", sa.Float(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.site_id"], name=op.f("fk_clocks_site_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site_id", name=op.f("pk_clocks")),
    )
    op.create_table(
        "cycles",
        sa.Column("cycle_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=True),
        sa.Column("data_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire_bytes", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["protection_id"], ["protections.protection_id"], name=op.f("fk_cycles_protection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cycle_id", name=op.f("pk_cycles")),
    )
    op.create_index(
        op.f("ix_cycles_protection_id_started_at"), "cycles", ["protection_id", "started_at"], unique=False
    )
    op.create_table(
        "live",
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("progress", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("source_power", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["protection_id"], ["protections.protection_id"], name=op.f("fk_live_protection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("protection_id", name=op.f("pk_live")),
    )
    op.create_table(
        "pairs",
        sa.Column("site_a", sa.String(), nullable=False),
        sa.Column("site_b", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["site_a"], ["sites.site_id"], name=op.f("fk_pairs_site_a"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["site_b"], ["sites.site_id"], name=op.f("fk_pairs_site_b"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site_a", "site_b", name=op.f("pk_pairs")),
    )
    op.create_table(
        "points",
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("current_as_of", sa.DateTime(timezone=True), nullable=False),
        sa.Column("consistency", sa.String(), nullable=False),
        sa.Column("bytes_sent", sa.BigInteger(), nullable=False),
        sa.Column("pins", sa.JSON(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("proven_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["protection_id"], ["protections.protection_id"], name=op.f("fk_points_protection_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("protection_id", "seq", name=op.f("pk_points")),
    )
    op.create_table(
        "rpo_samples",
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("step_ms", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("rpo_s", sa.Float(), nullable=True),
        sa.Column("gap", sa.Boolean(), nullable=False),
        sa.Column("target_s", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["protection_id"],
            ["protections.protection_id"],
            name=op.f("fk_rpo_samples_protection_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("protection_id", "step_ms", "at_ms", name=op.f("pk_rpo_samples")),
    )
    op.create_index(op.f("ix_rpo_samples_step_ms_at_ms"), "rpo_samples", ["step_ms", "at_ms"], unique=False)
