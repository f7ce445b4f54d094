"""The types of sources that come with capstand: a module for each, found by its name."""
