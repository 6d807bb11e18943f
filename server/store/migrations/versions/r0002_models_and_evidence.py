"""Models, the runs that made them, and their evidence."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Make the tables of models, runs and evidence."""
    op.bulk_insert(
        sa.table("meta", sa.column("name", sa.String), sa.column("value", sa.Text)), [{"name": "current_model", "value": ""}]
    )
    op.create_table(
        "models",
        sa.Column("version", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("state", sa.String(64), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["parent"], ["models.version"], name="fk_models_parent_models"),
        sa.PrimaryKeyConstraint("version", name="pk_models"),
    )
    op.create_table(
        "runs",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("requests", sa.Text(), nullable=False),
        sa.Column("base", sa.Integer(), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("approvals", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["base"], ["models.version"], name="fk_runs_base_models"),
        sa.PrimaryKeyConstraint("name", name="pk_runs"),
    )
    op.create_table(
        "evidence_signatures",
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("site", sa.String(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_evidence_signatures_run_runs"),
        sa.ForeignKeyConstraint(["site"], ["sites.name"], name="fk_evidence_signatures_site_sites"),
        sa.PrimaryKeyConstraint("run", "site", name="pk_evidence_signatures"),
    )
    op.create_table(
        "statements",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("run", sa.String(64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("signature", sa.String(128), nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.name"], name="fk_statements_run_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_statements"),
    )
    op.create_index("ix_statements_run", "statements", ["run"])
