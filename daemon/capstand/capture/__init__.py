"""From a capture device to blocks in the ring: the source protocol, its two sources, the thread."""
