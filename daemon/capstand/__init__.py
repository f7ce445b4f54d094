"""Sound from ALSA capture devices to channels and files, unattended and with exact books."""
