"""Where blocks go: the sink protocol, the outlet in front of each sink, the sinks."""
