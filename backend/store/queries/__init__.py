"""The read layer: what lists and pages show. Functions take a Connection first and return records, never rows."""
