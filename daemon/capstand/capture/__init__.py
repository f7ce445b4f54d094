"""From a capture device to blocks in the ring: the source protocol, its sources, the thread."""
