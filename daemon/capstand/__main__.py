"""Entry point: settings that must stand before anything else is loaded, then the command line."""

import os
import signal
import sys

from capstand.host import console, signals

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would be locked memory for nothing


def main() -> None:
    signals.hold()
    console.prepare()
    try:
        from capstand.cli import main as cli

        status = cli.main()
    except SystemExit as ended:  # argparse's
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        console.finish(0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # the shell is to see what it was
        status = 1
    sys.exit(console.finish(status))


if __name__ == "__main__":
    main()
