"""What is done to samples on their way to the sinks."""
