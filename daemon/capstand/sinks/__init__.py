"""Where blocks go: the sink protocol, the sinks, what stands in front of each."""
