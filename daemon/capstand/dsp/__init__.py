"""What is done to samples between capture and the sinks."""
