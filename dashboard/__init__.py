"""The dashboard: what is stored, seen in a browser. No torch, no SQL."""
