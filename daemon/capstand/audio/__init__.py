"""What travels, and when was it: blocks, the clock of a card, the ring."""
