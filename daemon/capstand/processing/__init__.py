"""What is done to the samples between capture and sinks: a chain of processors per stream."""
