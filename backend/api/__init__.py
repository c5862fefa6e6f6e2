"""REST: `create_app(settings)`, one guard in front of it, routes by noun. Knows no torch and no SQL."""
