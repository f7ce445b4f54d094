"""What we ask of the machine: priority, the journal, systemd, signals, the control socket."""
