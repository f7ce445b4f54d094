"""What became of every frame: the counters, and the ledger on disk."""
