"""Recordings: segments of WAV or FLAC in a directory."""
