"""The types of processors that come with capstand: a module for each, found by its name."""
