"""One card and all that it feeds."""
