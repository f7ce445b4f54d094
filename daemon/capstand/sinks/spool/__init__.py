"""Sound that waits on disk while its sink is away."""
