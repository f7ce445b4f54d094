"""Who may ask for a device."""

OPERATOR = "operator"
"""A person, by `capstand release`."""
RESERVATION = "reservation"
"""A program, by D-Bus."""
