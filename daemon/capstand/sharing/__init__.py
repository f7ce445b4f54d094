"""Who else wants the card: reservations, and devices that are lent."""
