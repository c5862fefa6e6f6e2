"""The tables. Private to this package and to Alembic.

Times are seconds since 1970 UTC by the database's clock (`session.db_now`), so that SQLite and Postgres compare them
alike and leases never depend on a worker's clock. Public ids are UUIDs; the small integers are for joins (pairs).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite counts rowids only in a plain INTEGER; Postgres needs the room of a bigint.
Serial = BigInteger().with_variant(Integer, "sqlite")
# None is SQL's NULL, never JSON's null.
Json = JSON(none_as_null=True)

models = Table(
    "models",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Uuid, nullable=False, unique=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("source", String(16), nullable=False),
    Column("architecture", Text),
    Column("kwargs", Json, nullable=False),
    Column("pretrained", Boolean, nullable=False),
    Column("checkpoint", Text),
    Column("init_seed", Integer, nullable=False),
    Column("weights_hash", String(64)),
    Column("preprocessing", Json),
    Column("num_classes", Integer),
    Column("label_space", String(200)),
    Column("family", String(16), nullable=False),
    Column("param_count", BigInteger),
    Column("reported_accuracy", Json, nullable=False),
    Column("lineage", Json),
    Column("created_at", Double, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Uuid, nullable=False, unique=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("source", String(16), nullable=False),
    Column("location", Text),
    Column("options", Json, nullable=False),
    Column("label_space", String(200)),
    Column("class_names", Json, nullable=False),
    Column("splits", Json, nullable=False),
    Column("created_at", Double, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("uid", Uuid, nullable=False, unique=True),
    Column("key", String(64), nullable=False, unique=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False),
    Column("split", String(200), nullable=False),
    Column("subset", String(64), nullable=False),
    Column("dtype", String(16), nullable=False),
    Column("state", String(8), nullable=False),
    Column("reason", Text),
    Column("accuracy", Double),
    Column("n_samples", Integer, nullable=False),
    Column("n_classes", Integer, nullable=False),
    Column("inexpressible_classes", Integer, nullable=False),
    Column("bad_samples", Json, nullable=False),
    Column("images_per_s", Double),
    Column("predictions_uri", Text),
    Column("predictions_sha256", String(64)),
    Column("logits_uri", Text),
    Column("provenance", Json, nullable=False),
    Column("job_id", Uuid),
    Column("created_at", Double, nullable=False),
    Index("ix_evaluations_board", "dataset_id", "split", "model_id"),
)

# One row per ordered pair on one split, from each model's current evaluation. Rates are stored beside the counts
# because lists sort and filter by them; intervals are closed forms of the counts, computed for the page that is shown.
pairs = Table(
    "pairs",
    metadata,
    Column("dataset_id", ForeignKey("datasets.id"), primary_key=True),
    Column("split", String(200), primary_key=True),
    Column("teacher_id", ForeignKey("models.id"), primary_key=True),
    Column("student_id", ForeignKey("models.id"), primary_key=True),
    Column("n_samples", Integer, nullable=False),
    Column("n_classes", Integer, nullable=False),
    Column("both_right", Integer, nullable=False),
    Column("positive_flips", Integer, nullable=False),
    Column("negative_flips", Integer, nullable=False),
    Column("teacher_accuracy", Double, nullable=False),
    Column("student_accuracy", Double, nullable=False),
    Column("accuracy_difference", Double, nullable=False),
    Column("positive_flip_rate", Double, nullable=False),
    Column("negative_flip_rate", Double, nullable=False),
    Column("flip_entropy_nats", Double, nullable=False),
    Column("mcnemar_p_value", Double, nullable=False),
    Index("ix_pairs_positive", "dataset_id", "split", "positive_flip_rate", "teacher_id", "student_id"),
    Index("ix_pairs_negative", "dataset_id", "split", "negative_flip_rate", "teacher_id", "student_id"),
    Index("ix_pairs_difference", "dataset_id", "split", "accuracy_difference", "teacher_id", "student_id"),
    Index("ix_pairs_entropy", "dataset_id", "split", "flip_entropy_nats", "teacher_id", "student_id"),
    Index("ix_pairs_student", "dataset_id", "split", "student_id", "teacher_id"),
    sqlite_with_rowid=False,
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("queue", String(8), nullable=False),
    # What the spec asks for: auto, cpu, cuda or cuda:N. A column, because the claim routes by it.
    Column("device", String(8), nullable=False),
    Column("state", String(16), nullable=False),
    Column("spec", Json, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("owner", String(200), nullable=False),
    Column("idempotency_key", String(255)),
    Column("body_sha256", String(64)),
    Column("attempt", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("worker", String(200)),
    Column("host", String(200)),
    Column("gpu", Integer),
    Column("lease_until", Double),
    Column("not_before", Double, nullable=False),
    Column("cancel_requested_at", Double),
    Column("step", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("checkpoint", Json),
    Column("cause", String(32)),
    Column("message", Text),
    Column("result", Json),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("retry_of", ForeignKey("jobs.id")),
    Column("resume_from", ForeignKey("jobs.id")),
    Column("parent", ForeignKey("jobs.id")),
    CheckConstraint("state in ('queued','running','cancelling','succeeded','failed','cancelled')", name="state"),
    # A study has no worker of its own: its state is derived from its children, so it runs without a lease.
    CheckConstraint(
        "kind = 'study' or ((state in ('running','cancelling')) = (lease_until is not null))", name="lease"
    ),
    CheckConstraint("(state in ('succeeded','failed','cancelled')) = (finished_at is not null)", name="finished"),
    CheckConstraint("attempt >= 0 and fence >= attempt and losses >= 0 and step >= 0 and total >= 0", name="counts"),
    UniqueConstraint("owner", "idempotency_key", name="uq_jobs_owner_idempotency_key"),
    Index(
        "ix_jobs_queued",
        text("priority DESC"),
        "created_at",
        "id",
        sqlite_where=text("state = 'queued'"),
        postgresql_where=text("state = 'queued'"),
    ),
    Index("ix_jobs_state", "state", "created_at", "id"),
    Index("ix_jobs_parent", "parent"),
    Index("ix_jobs_created", "created_at", "id"),
    Index(
        "uq_jobs_gpu",
        "host",
        "gpu",
        unique=True,
        sqlite_where=text("state in ('running','cancelling') and gpu is not null"),
        postgresql_where=text("state in ('running','cancelling') and gpu is not null"),
    ),
)

job_dependencies = Table(
    "job_dependencies",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("after_id", ForeignKey("jobs.id"), primary_key=True),
    Index("ix_job_dependencies_after", "after_id"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("type", String(8), nullable=False),
    Column("at", Double, nullable=False),
    Column("data", Json, nullable=False),
    CheckConstraint("type in ('state','progress','metric','log')", name="type"),
    Index("ix_job_events_job", "job_id", "id"),
    sqlite_autoincrement=True,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("job_id", ForeignKey("jobs.id")),
    Column("fence", Integer, nullable=False),
    Column("name", String(255), nullable=False),
    Column("uri", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String(100), nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_artifacts_job", "job_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("host", String(200), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", Json, nullable=False),
    Column("devices", Json, nullable=False),
    Column("versions", Json, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("scopes", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)
