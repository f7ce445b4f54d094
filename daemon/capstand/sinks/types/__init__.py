"""The types of sinks that come with capstand: a module for each, found by its name."""
