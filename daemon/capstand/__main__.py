"""Entry point: settings that must stand before numpy is imported, then the command line."""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads would be locked memory for nothing


def main() -> None:
    from capstand import cli

    sys.exit(cli.main())


if __name__ == "__main__":
    main()
