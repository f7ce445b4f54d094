"""Sound from ALSA capture devices to channels and files, unattended and with exact books."""

__version__ = "0.1.0"
