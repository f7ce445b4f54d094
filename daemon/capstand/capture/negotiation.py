"""How a PCM is opened as it was asked for, and what it granted, which is read back because
pyalsaaudio ignores what the setters refuse. Thread: capture.
"""

import errno

import alsaaudio

from capstand.capture import refusal
from capstand.config.schema import LARGEST_PERIOD, CaptureConfig
from capstand.devices import libasound
from capstand.errors import DeviceError


def fewest_channels(device: str, label: str, capture: CaptureConfig) -> int:
    """The fewest channels of the device that hold all that are picked. Where it is no card's own,
    two if it can be, because ALSA's plug mixes a card's channels into a single one. Raises
    DeviceError, refused."""
    least = capture.least_channels
    offered = libasound.channel_counts(device, capture.rate_hz, capture.audio.sample)
    enough = [count for count in offered if count >= least]
    if not offered:
        return least  # it will refuse, and say what
    if not enough:
        raise DeviceError(
            f"{label}: channel {least} is picked and it has {max(offered)}; set pick to existing "
            "channels",
            errno.EINVAL,
            refused=True,
        )
    direct = device.startswith("hw:")
    return min((one for one in enough if direct or one > 1), default=enough[0])


def configured(device: str, capture: CaptureConfig, channels: int) -> "alsaaudio.PCM":
    """The device as asked for. Where its period is another one, so is the buffer of so many
    periods: then it is opened again, once, for as many of those as make the buffer."""
    period, wanted = capture.period_frames, capture.buffer_frames
    again = True
    while True:
        pcm = alsaaudio.PCM(
            type=alsaaudio.PCM_CAPTURE,
            mode=alsaaudio.PCM_NONBLOCK,
            device=device,
            rate=capture.rate_hz,
            channels=channels,
            format=capture.audio.sample.alsa_number,
            periodsize=period,
            periods=max(2, round(wanted / period)),
        )
        info = pcm.info()
        granted, buffer = max(1, int(info["period_size"])), int(info["buffer_size"])
        if granted == period or abs(buffer - wanted) <= 0.1 * wanted or not again:
            return pcm
        pcm.close()
        period, again = granted, False


def check(
    pcm: "alsaaudio.PCM", device: str, label: str, capture: CaptureConfig, channels: int
) -> tuple[int, int]:
    """Compares what was granted with what was asked; the period and the buffer, in frames. Raises
    DeviceError, refused, and closes the PCM then."""
    info = pcm.info()
    asked = {"rate_hz": capture.rate_hz, "channels": channels, "format": capture.format}
    granted = {
        "rate_hz": info["rate"],
        "channels": info["channels"],
        "format": info["format_name"],
    }
    wrong = [
        f"requested {key} {asked[key]}, the card granted {granted[key]}"
        for key in asked
        if asked[key] != granted[key]
    ]
    period, buffer = int(info["period_size"]), int(info["buffer_size"])
    if wrong:
        pcm.close()
        more = not capture.pick and granted["channels"] > asked["channels"]
        advice = "; pick = [1] takes one channel of a card with more" if more else ""
        raise DeviceError(
            f"{label}: {'; '.join(wrong)}; {refusal.offers(device)}{advice}",
            errno.EINVAL,
            refused=True,
        )
    if period > LARGEST_PERIOD * capture.period_frames:
        pcm.close()
        granted_ms = period * 1000 / capture.rate_hz
        longer = f" and buffer_ms = {4 * granted_ms:g} or more"
        raise DeviceError(
            f"{label}: requested period_ms {capture.period_ms:g}, the card granted "
            f"{granted_ms:g} ({period} frames); set period_ms = {granted_ms:g}"
            + (longer if capture.buffer_ms < 4 * granted_ms else ""),
            errno.EINVAL,
            refused=True,
        )
    return period, buffer
