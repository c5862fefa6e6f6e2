"""The papers as code: tensors and numbers in, records out. Knows no queue, no database, no settings."""
