"""Agora's wrapper and native library: fetched, loaded, called."""
