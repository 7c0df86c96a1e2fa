"""Which engine's a protection is, where several share the work."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "claims",
        sa.Column("protection_id", sa.String(), nullable=False),
        sa.Column("engine_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["protection_id"],
            ["protections.protection_id"],
            name=op.f("fk_claims_protection_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("protection_id", name=op.f("pk_claims")),
    )
