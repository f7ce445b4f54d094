"""What a control node answers, as the C header has it, and names of any bytes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from capstand.devices import node

SHOW = """
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/ioctl.h>
#include <sound/asound.h>
int main(int argc, char **argv) {
    struct snd_ctl_card_info card;
    struct snd_pcm_info pcm;
    memset(&card, 0, sizeof card);
    memset(&pcm, 0, sizeof pcm);
    strcpy((char *)card.id, "Mic");
    strcpy((char *)card.name, "USB Mic");
    strcpy((char *)card.longname, "A USB Mic at usb-0000:00:14.0-1, full speed");
    strcpy((char *)pcm.name, "USB Audio");
    if (argc > 1 && argv[1][0] == 'c') fwrite(&card, sizeof card, 1, stdout);
    else if (argc > 1) fwrite(&pcm, sizeof pcm, 1, stdout);
    else printf("%lu %lu", (unsigned long)SNDRV_CTL_IOCTL_CARD_INFO,
                (unsigned long)SNDRV_CTL_IOCTL_PCM_INFO);
    return 0;
}
"""


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing")
    folder = tmp_path_factory.mktemp("header")
    (folder / "show.c").write_text(SHOW)
    subprocess.run(["gcc", "-o", folder / "show", folder / "show.c"], check=True)
    return folder / "show"


def said(header: Path, *what: str) -> bytes:
    return subprocess.run([header, *what], capture_output=True, check=True).stdout


def test_numbers(header: Path) -> None:
    """The calls have the numbers that the header gives them."""
    assert said(header).decode() == f"{node.CARD_INFO} {node.PCM_INFO}"


def test_names(header: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are where the header puts them."""
    card, pcm = said(header, "card"), said(header, "pcm")
    monkeypatch.setattr(
        node, "_ask", lambda _, call, asked: card if len(asked) == len(card) else pcm
    )
    assert node.card_names(Path("x")) == node.CardNames(
        "Mic", "USB Mic", "A USB Mic at usb-0000:00:14.0-1, full speed"
    )
    assert node.capture_name(Path("x"), 0) == "USB Audio"


def test_a_name_of_any_bytes_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is cut within a character, or steers a terminal, is one line of text."""
    name = b"R\xc3\xa9duction\x1b[2J\nde brui\xc3"
    answer = node._CARD.pack(0, 0, b"Mic", b"", name, name, b"", b"", b"")
    monkeypatch.setattr(node, "_ask", lambda *_: bytearray(answer))
    names = node.card_names(Path("x"))
    assert names is not None
    assert names.name == names.long_name == "Réduction\\x1b[2J de brui\ufffd"


def test_what_is_no_control_node_has_no_names(tmp_path: Path) -> None:
    """A file, and nothing at all, have no names to tell."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none"):
        assert node.card_names(path) is None
        assert node.capture_name(path, 0) is None
