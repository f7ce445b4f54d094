"""Why a card cannot be had or has failed, in words for people: who has it, what it offers, what to
do. Thread: capture.
"""

import errno
import os
import re
from pathlib import Path

from capstand.devices import address, holder, identity, libasound, rebind
from capstand.errors import DeviceError

_ERRNOS = {
    os.strerror(number): number
    for number in (
        errno.ENOENT,
        errno.ENODEV,
        errno.ENXIO,
        errno.EBUSY,
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EINVAL,
        errno.ESTRPIPE,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ETIMEDOUT,
    )
}


def failure(error: Exception, what: str, label: str, device: str, root: Path) -> DeviceError:
    """``device`` is ALSA's name for what people know as ``label``; ``what`` it did."""
    text = str(error).removesuffix(f" [{device}]")
    number = error.errno if isinstance(error, OSError) else _ERRNOS.get(text, 0)
    if number == errno.EBUSY:
        return DeviceError(busy(label, device), number)
    reason = os.strerror(number) if number else text
    match number:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            todo = "is it plugged in? `capstand devices` lists the devices"
            if not (root / "dev/snd").is_dir():
                todo += " (/dev/snd is missing; pass it to the container)"
        case errno.EACCES:
            todo = identity.joining()
        case errno.EPERM:
            todo = (
                "the unit or the container denies access: DeviceAllow=char-alsa rw, or "
                "--device-cgroup-rule='c 116:* rw'"
            )
        case errno.EINVAL:
            todo = "`capstand devices` lists its capabilities"
        case errno.EIO | errno.ETIMEDOUT:
            todo = f"reopening it; if that does not help, {rebind.advice(device)}"
        case _:
            todo = "reopening it"
    if what == "cannot be opened" and _config_at_fault(said := libasound.last_errors()):
        files = os.environ.get("ALSA_CONFIG_PATH", "/etc/asound.conf, ~/.asoundrc")
        reason, todo = f"{reason}; ALSA says: {said}", f"see {files}"
    return DeviceError(f"{label} {what}: {reason}; {todo}", number or 0)


def busy(label: str, device: str) -> str:
    """Names who has the device, and what could be done about it."""
    place = address.place_of(device)
    name = holder.holder_of(*place) if place else None
    if name is None:
        return f"{label} is in use: another program has it open; waiting for it"
    advice = "stop it, or share the card through dsnoop"
    if name.startswith(holder.SOUND_SERVERS):
        advice = "run capstand as that user, so that it can reserve the card"
    return f"{label} is in use by {name}; waiting for it; {advice}"


def _config_at_fault(said: str) -> bool:
    """Whether what libasound says is about its configuration, not about a card or its node."""
    about_card = re.search(r"cannot (get|find) card|/dev/snd/", said, re.IGNORECASE)
    return bool(said) and about_card is None


def offers(device: str) -> str:
    """What a device can do and what to do about it, in words; opens it for a moment."""
    try:
        can = libasound.abilities(device)
    except OSError as error:
        return f"its capabilities cannot be queried: {error.strerror}; `capstand devices` lists it"
    if can.usable:
        return f"the device offers {can}; set [stream.capture] to one of these"
    return (
        f"the device offers {can}; define a PCM of type plug in /etc/asound.conf, which converts, "
        "and use it as the device"
    )
