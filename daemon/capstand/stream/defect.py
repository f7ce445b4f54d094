"""From what was measured of single channels to what a person should look at. Pure."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from capstand.accounting.stats import span
from capstand.config.schema import CaptureConfig

if TYPE_CHECKING:
    from capstand.dsp.defects import ChannelFigures
    from capstand.dsp.loudness import LoudnessFigures


class Defect(NamedTuple):
    """``channels`` are the card's numbers; ``message`` tell its beginning, ``cleared`` its end."""

    kind: str
    channels: tuple[int, ...]
    message: str
    cleared: str


def find(figures: Sequence["ChannelFigures"], capture: CaptureConfig) -> list[Defect]:
    """The defects of a stream's channels, the gravest first. That all are nothing but zeros is told
    elsewhere."""
    numbers = [capture.card_channel(at) for at in range(len(figures))]
    found = [_stuck(figures, capture.silence_warn_s), *_dead(figures, numbers, capture.dead_warn_s)]
    sound = [
        (number, one) for number, one in zip(numbers, figures, strict=True) if not one.constant_s
    ]
    clipping = [(number, one) for number, one in sound if one.is_clipping]
    if clipping:
        per_s = max(one.clipped_per_s or 0.0 for _, one in clipping)
        names, verb = _names([number for number, _ in clipping], "clips", "clip")
        found.append(
            Defect(
                "clipping",
                tuple(number for number, _ in clipping),
                f"{names} {verb}: {per_s:.0f} clipped peaks per second; lower the gain",
                "clipping ended",
            )
        )
    offset = [(number, one) for number, one in sound if one.is_offset]
    if offset:
        most = max((one.dc or 0.0 for _, one in offset), key=abs)
        names, verb = _names([number for number, _ in offset], "has", "have")
        found.append(
            Defect(
                "offset",
                tuple(number for number, _ in offset),
                f"{names} {verb} a DC offset of {most:+.3f} of full scale "
                f"({20 * math.log10(abs(most) or 1e-6):.1f} dBFS): is the input or the format "
                "wrong?",
                "the DC offset is gone",
            )
        )
    return [one for one in found if one is not None]


def of_loudness(figures: "LoudnessFigures", capture: CaptureConfig) -> list[Defect]:
    """What is wrong with the loudness of a stream, by the limits that its configuration sets."""
    short_lufs = figures.heard.short_term_lufs
    found = []
    if figures.is_over:
        limit = capture.true_peak_warn_dbtp
        words = (
            f"true peak of {figures.reported_peak_dbtp:+.1f} dBTP, above true_peak_warn_dbtp "
            f"({limit:g}); lower the gain"
        )
        found.append(Defect("true peak", (), words, f"no true peak above {limit:g} dBTP now"))
    if figures.is_loud:
        limit = capture.loud_warn_lufs
        words = (
            f"loudness of {short_lufs:.1f} LUFS, above loud_warn_lufs ({limit:g}); lower the gain"
        )
        found.append(Defect("loud", (), words, f"the loudness is below {limit:g} LUFS again"))
    if figures.is_quiet:
        limit = capture.quiet_warn_lufs
        words = (
            f"loudness of {short_lufs:.1f} LUFS, below quiet_warn_lufs ({limit:g}): is the "
            "microphone far away, or its gain low?"
        )
        found.append(Defect("quiet", (), words, f"the loudness is above {limit:g} LUFS again"))
    return found


def _stuck(figures: Sequence["ChannelFigures"], limit_s: float) -> Defect | None:
    """All channels have brought one value each, and not only zeros."""
    for_s = min(figure.constant_s for figure in figures)
    if not limit_s or for_s < limit_s or not any(figure.value for figure in figures):
        return None
    return Defect(
        "stuck",
        (),
        f"every sample has had the same value ({_values(figures)} of full scale) for "
        f"{span(for_s)}: is the microphone off, or the cable unplugged?",
        "the signal changes again",
    )


def _dead(figures: Sequence["ChannelFigures"], numbers: list[int], limit_s: float) -> list[Defect]:
    """Channels that have brought one value while another sounds."""
    if not limit_s:
        return []
    alive = [n for n, one in zip(numbers, figures, strict=True) if one.constant_s < limit_s]
    found = []
    for kind in ("dead", "stuck"):
        those = [
            (number, one)
            for number, one in zip(numbers, figures, strict=True)
            if one.constant_s >= limit_s and bool(one.value) is (kind == "stuck")
        ]
        if not those or not alive:
            continue
        names, verb = _names([number for number, _ in those], "is", "are")
        others, sound = _names(alive, "sounds", "sound")
        for_s = span(min(one.constant_s for _, one in those))
        what = "only zeros" if kind == "dead" else f"only {_values([one for _, one in those])}"
        found.append(
            Defect(
                f"{kind} channel",
                tuple(number for number, _ in those),
                f"{names} {verb} {kind}: {what} for {for_s} while {others} {sound}: is the cable "
                f"mono? pick = {alive} leaves {'it' if len(those) == 1 else 'them'} out",
                f"no channel is {kind} now",
            )
        )
    return found


def _values(figures: Sequence["ChannelFigures"]) -> str:
    return ", ".join(dict.fromkeys(f"{figure.value:+.4f}" for figure in figures[:4]))


def _names(numbers: list[int], one: str, several: str) -> tuple[str, str]:
    """The channels for people, and the verb that fits."""
    if len(numbers) == 1:
        return f"channel {numbers[0]}", one
    shown = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    return f"channels {shown}", several
