"""Figures: records in, `go.Figure` out. Pure; percent exists only here and in printed tables."""
