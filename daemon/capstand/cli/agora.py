"""``capstand agora install``."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from capstand.cli.parsing import lined
from capstand.errors import CapstandError
from capstand.text import clean

if TYPE_CHECKING:
    from capstand.cli.parsing import Commands


def add(commands: "Commands") -> None:
    agora = commands.add_parser(
        "agora",
        help="install what the Agora sink needs",
        description="Installs what the Agora sink needs.",
    )
    _add_install(agora.add_subparsers(title="commands", metavar="COMMAND", required=True))


def _add_install(commands: "Commands") -> None:
    install = commands.add_parser(
        "install",
        formatter_class=lined,
        help="download Agora's wrapper and native library",
        description="""\
Downloads what an Agora sink needs: the Python wrapper, by pip, pinned by version and checksum, and
Agora's native library, by the wrapper's own means but with the server's certificate checked. It is
verified and tested before it replaces an existing installation. The daemon never downloads it.""",
        epilog="""\
The native library is Agora's property and comes under Agora's terms.

Where the daemon looks, in this order: $CAPSTAND_AGORA (then nowhere else), /opt/capstand/agora,
~/.local/share/capstand/agora, a package agora in Python's own path.

environment:
  https_proxy    the proxy for both downloads
  SSL_CERT_FILE  the certificates to trust, if a proxy replaces the server's
  PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, PIP_NO_INDEX, PIP_CERT, PIP_PROXY,
  PIP_TRUSTED_HOST  where to get the wrapper, as for pip

examples:
  sudo capstand agora install                         for the service
  sudo --preserve-env=https_proxy capstand agora install
  capstand agora install --into ~/agora               without root's rights""",
    )
    install.add_argument(
        "--into",
        metavar="DIR",
        type=Path,
        help="where to (default: /opt/capstand/agora, for others than root"
        " ~/.local/share/capstand/agora)",
    )
    install.add_argument(
        "--again", action="store_true", help="download it even if it is installed and valid"
    )
    install.set_defaults(act=_install)


def _install(chosen: argparse.Namespace) -> int:
    from capstand.agora.sdk import install

    os.umask(0o022)  # the service's user reads what root installs
    try:
        folder = (chosen.into or install.default_folder()).expanduser()
    except RuntimeError:
        whose = str(chosen.into).split("/")[0] if chosen.into else f"uid {os.geteuid()}"
        raise CapstandError(
            f"{whose} has no home directory; name the folder by --into /WHOLE/PATH"
        ) from None
    install.install(folder, lambda text: print(clean.lines(text), flush=True), again=chosen.again)
    return 0
