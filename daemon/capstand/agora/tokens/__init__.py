"""Tokens: what they say, where they come from, when they are renewed."""
