"""The tables as of 0.1: catalog, evaluations and pairs, jobs with their events and artifacts, workers, tokens.

Two triggers guard jobs whoever writes: a finished job never changes its state again, and (on Postgres) every job that
may have become claimable or cancelled wakes the supervisors that LISTEN.

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQLITE = (
    """
    CREATE TRIGGER jobs_terminal BEFORE UPDATE OF state ON jobs
    WHEN OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state <> OLD.state
    BEGIN SELECT RAISE(ABORT, 'a finished job never changes its state'); END
    """,
    """
    CREATE TRIGGER job_events_update BEFORE UPDATE ON job_events
    BEGIN SELECT RAISE(ABORT, 'job_events is append-only'); END
    """,
)
POSTGRES = (
    """
    CREATE FUNCTION jobs_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'a finished job never changes its state' USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER jobs_terminal BEFORE UPDATE OF state ON jobs FOR EACH ROW
    WHEN (OLD.state IN ('succeeded', 'failed', 'cancelled') AND NEW.state <> OLD.state)
    EXECUTE FUNCTION jobs_terminal()
    """,
    """
    CREATE FUNCTION job_events_update() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'job_events is append-only' USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER job_events_update BEFORE UPDATE ON job_events FOR EACH ROW EXECUTE FUNCTION job_events_update()
    """,
    """
    CREATE FUNCTION jobs_wake() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('zoograft_jobs', NEW.id::text);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER jobs_wake AFTER INSERT OR UPDATE OF state ON jobs FOR EACH ROW
    WHEN (NEW.state IN ('queued', 'cancelling', 'succeeded')) EXECUTE FUNCTION jobs_wake()
    """,
)


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("options", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("label_space", sa.String(length=200), nullable=True),
        sa.Column("class_names", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("splits", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_datasets_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_datasets_uid")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("queue", sa.String(length=8), nullable=False),
        sa.Column("device", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("body_sha256", sa.String(length=64), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=200), nullable=True),
        sa.Column("host", sa.String(length=200), nullable=True),
        sa.Column("gpu", sa.Integer(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("not_before", sa.Double(), nullable=False),
        sa.Column("cancel_requested_at", sa.Double(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("cause", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=True),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("resume_from", sa.Uuid(), nullable=True),
        sa.Column("parent", sa.Uuid(), nullable=True),
        sa.CheckConstraint(
            "(state in ('succeeded','failed','cancelled')) = (finished_at is not null)", name=op.f("ck_jobs_finished")
        ),
        sa.CheckConstraint(
            "kind = 'study' or ((state in ('running','cancelling')) = (lease_until is not null))",
            name=op.f("ck_jobs_lease"),
        ),
        sa.CheckConstraint(
            "state in ('queued','running','cancelling','succeeded','failed','cancelled')", name=op.f("ck_jobs_state")
        ),
        sa.CheckConstraint(
            "attempt >= 0 and fence >= attempt and losses >= 0 and step >= 0 and total >= 0",
            name=op.f("ck_jobs_counts"),
        ),
        sa.ForeignKeyConstraint(["parent"], ["jobs.id"], name=op.f("fk_jobs_parent_jobs")),
        sa.ForeignKeyConstraint(["resume_from"], ["jobs.id"], name=op.f("fk_jobs_resume_from_jobs")),
        sa.ForeignKeyConstraint(["retry_of"], ["jobs.id"], name=op.f("fk_jobs_retry_of_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
    )
    op.create_index("ix_jobs_created", "jobs", ["created_at", "id"], unique=False)
    op.create_index("ix_jobs_parent", "jobs", ["parent"], unique=False)
    op.create_index(
        "ix_jobs_queued",
        "jobs",
        [sa.text("priority DESC"), "created_at", "id"],
        unique=False,
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state", "created_at", "id"], unique=False)
    op.create_index(
        "uq_jobs_gpu",
        "jobs",
        ["host", "gpu"],
        unique=True,
        sqlite_where=sa.text("state in ('running','cancelling') and gpu is not null"),
        postgresql_where=sa.text("state in ('running','cancelling') and gpu is not null"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=True),
        sa.Column("kwargs", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("pretrained", sa.Boolean(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=True),
        sa.Column("init_seed", sa.Integer(), nullable=False),
        sa.Column("weights_hash", sa.String(length=64), nullable=True),
        sa.Column("preprocessing", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("num_classes", sa.Integer(), nullable=True),
        sa.Column("label_space", sa.String(length=200), nullable=True),
        sa.Column("family", sa.String(length=16), nullable=False),
        sa.Column("param_count", sa.BigInteger(), nullable=True),
        sa.Column("reported_accuracy", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("lineage", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", name=op.f("uq_models_name")),
        sa.UniqueConstraint("uid", name=op.f("uq_models_uid")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("sha256", name=op.f("uq_tokens_sha256")),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("queues", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("devices", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("versions", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("media_type", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_artifacts_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
    )
    op.create_index("ix_artifacts_job", "artifacts", ["job_id"], unique=False)
    op.create_table(
        "evaluations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uid", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=200), nullable=False),
        sa.Column("subset", sa.String(length=64), nullable=False),
        sa.Column("dtype", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("accuracy", sa.Double(), nullable=True),
        sa.Column("n_samples", sa.Integer(), nullable=False),
        sa.Column("n_classes", sa.Integer(), nullable=False),
        sa.Column("inexpressible_classes", sa.Integer(), nullable=False),
        sa.Column("bad_samples", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("images_per_s", sa.Double(), nullable=True),
        sa.Column("predictions_uri", sa.Text(), nullable=True),
        sa.Column("predictions_sha256", sa.String(length=64), nullable=True),
        sa.Column("logits_uri", sa.Text(), nullable=True),
        sa.Column("provenance", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_evaluations_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_evaluations_model_id_models")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluations")),
        sa.UniqueConstraint("key", name=op.f("uq_evaluations_key")),
        sa.UniqueConstraint("uid", name=op.f("uq_evaluations_uid")),
    )
    op.create_index("ix_evaluations_board", "evaluations", ["dataset_id", "split", "model_id"], unique=False)
    op.create_table(
        "job_dependencies",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("after_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["after_id"], ["jobs.id"], name=op.f("fk_job_dependencies_after_id_jobs")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_dependencies_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "after_id", name=op.f("pk_job_dependencies")),
    )
    op.create_index("ix_job_dependencies_after", "job_dependencies", ["after_id"], unique=False)
    op.create_table(
        "job_events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=8), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=False),
        sa.CheckConstraint("type in ('state','progress','metric','log')", name=op.f("ck_job_events_type")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job", "job_events", ["job_id", "id"], unique=False)
    op.create_table(
        "pairs",
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=200), nullable=False),
        sa.Column("teacher_id", sa.Integer(), nullable=False),
        sa.Column("student_id", sa.Integer(), nullable=False),
        sa.Column("n_samples", sa.Integer(), nullable=False),
        sa.Column("n_classes", sa.Integer(), nullable=False),
        sa.Column("both_right", sa.Integer(), nullable=False),
        sa.Column("positive_flips", sa.Integer(), nullable=False),
        sa.Column("negative_flips", sa.Integer(), nullable=False),
        sa.Column("teacher_accuracy", sa.Double(), nullable=False),
        sa.Column("student_accuracy", sa.Double(), nullable=False),
        sa.Column("accuracy_difference", sa.Double(), nullable=False),
        sa.Column("positive_flip_rate", sa.Double(), nullable=False),
        sa.Column("negative_flip_rate", sa.Double(), nullable=False),
        sa.Column("flip_entropy_nats", sa.Double(), nullable=False),
        sa.Column("mcnemar_p_value", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_pairs_dataset_id_datasets")),
        sa.ForeignKeyConstraint(["student_id"], ["models.id"], name=op.f("fk_pairs_student_id_models")),
        sa.ForeignKeyConstraint(["teacher_id"], ["models.id"], name=op.f("fk_pairs_teacher_id_models")),
        sa.PrimaryKeyConstraint("dataset_id", "split", "teacher_id", "student_id", name=op.f("pk_pairs")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_pairs_difference",
        "pairs",
        ["dataset_id", "split", "accuracy_difference", "teacher_id", "student_id"],
        unique=False,
    )
    op.create_index(
        "ix_pairs_entropy",
        "pairs",
        ["dataset_id", "split", "flip_entropy_nats", "teacher_id", "student_id"],
        unique=False,
    )
    op.create_index(
        "ix_pairs_negative",
        "pairs",
        ["dataset_id", "split", "negative_flip_rate", "teacher_id", "student_id"],
        unique=False,
    )
    op.create_index(
        "ix_pairs_positive",
        "pairs",
        ["dataset_id", "split", "positive_flip_rate", "teacher_id", "student_id"],
        unique=False,
    )
    op.create_index("ix_pairs_student", "pairs", ["dataset_id", "split", "student_id", "teacher_id"], unique=False)
    # ### end Alembic commands ###

    for statement in POSTGRES if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    op.drop_table("pairs")
    op.drop_table("job_events")
    op.drop_table("job_dependencies")
    op.drop_table("evaluations")
    op.drop_table("artifacts")
    op.drop_table("workers")
    op.drop_table("tokens")
    op.drop_table("models")
    op.drop_table("jobs")
    op.drop_table("datasets")
    if op.get_bind().dialect.name == "postgresql":
        for function in ("jobs_terminal", "job_events_update", "jobs_wake"):
            op.execute(f"DROP FUNCTION {function}()")
