"""What a card's control node says of the card: its names, where sysfs and /proc do not tell them.

``/dev/snd/controlC*`` is there wherever a card can be opened at all; a container may hide all of
/proc/asound, and sysfs has no names. Two calls of the stable interface in ``sound/asound.h``
answer, CARD_INFO and PCM_INFO, which are the same on all machines.

Thread: any; a node is opened for a moment and answers at once.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from capstand.text import clean

CARD_INFO = 0x81785501
"""SNDRV_CTL_IOCTL_CARD_INFO, struct snd_ctl_card_info."""
PCM_INFO = 0xC1205531
"""SNDRV_CTL_IOCTL_PCM_INFO, struct snd_pcm_info."""
_CARD = struct.Struct("@ii16s16s32s80s16s80s128s")
_PCM = struct.Struct("@IIii64s80s128x")
_CAPTURE = 1


class CardNames(NamedTuple):
    """As the driver gave them: any bytes may be in them, made text here."""

    id: str
    name: str
    long_name: str


def card_names(control: Path) -> CardNames | None:
    """What the card of this control node is called; None where it does not say."""
    answer = _ask(control, CARD_INFO, bytearray(_CARD.size))
    if answer is None:
        return None
    _, _, identity, _, name, long_name, *_ = _CARD.unpack(answer)
    return CardNames(_text(identity), _text(name), _text(long_name))


def capture_name(control: Path, device: int) -> str | None:
    """What the card's capture device of that number is called; None where it does not say."""
    asked = bytearray(_PCM.size)
    struct.pack_into("@IIi", asked, 0, device, 0, _CAPTURE)
    answer = _ask(control, PCM_INFO, asked)
    return None if answer is None else _text(_PCM.unpack(answer)[5])


def _ask(control: Path, call: int, answer: bytearray) -> bytearray | None:
    try:
        node = os.open(control, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.ioctl(node, call, answer)
    except OSError:
        return None
    finally:
        os.close(node)
    return answer


def _text(raw: bytes) -> str:
    return clean.line(raw.split(b"\0", 1)[0].decode(errors="replace").strip())
