"""The `zoograft` command, by noun. A foreground run is *submit and attach*."""
