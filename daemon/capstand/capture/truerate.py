"""At which rate a device really runs, where that is not the one it says.

The clock follows a crystal, which is never off by more than a few hundred ppm. Some devices say one
rate and run at another (a driver that does not set it, a bus that loses packets all the time): far
beyond what the clock models. So the rate is measured over spans of ``SPAN_S``, apart from it. A
span that a stand-still or a late stamp falls into gives a rate of its own; only when ``SPANS`` in a
row agree is it the device's. And a source that brings much more than any rate could is no sound
card at all (ALSA's ``null``): it would take a whole processor.

Only arithmetic. Thread: capture; ``rate_hz`` is for any.
"""

from errno import EINVAL

from capstand.audio.block import NS_PER_S
from capstand.config.schema import COMMON_RATES
from capstand.errors import DeviceError

SPAN_S = 2.0
SPANS = 6
AGREE = 0.03
"""Spans differ by no more, as a pointer that moves by 20 ms at a time makes them."""
LIMIT = 0.01
"""Less than that is left to the clock, which follows it."""
FASTEST = 4
SLACK_S = 2.0
MOST_SLACK_NS = 60.0 * NS_PER_S


class TrueRate:
    """``rate_hz`` is the rate measured, None while it is near the nominal one or not known."""

    def __init__(self, nominal_hz: int) -> None:
        self.rate_hz: float | None = None
        self._nominal_hz = nominal_hz
        self._nominal_ns = NS_PER_S / nominal_hz
        self._measured: tuple[float, ...] = ()
        self._frame = self._stamp_ns = 0  # where the span began; no span with 0
        self._credit_ns = 0.0
        self._paid_ns = 0

    def restart(self) -> None:
        """The frames that follow are counted on from an estimate."""
        self._stamp_ns = 0
        self._measured = ()

    def observe(self, frame: int, stamp_ns: int) -> None:
        """At ``stamp_ns`` the device had produced ``frame`` frames."""
        since_ns = stamp_ns - self._stamp_ns
        if self._stamp_ns and since_ns < SPAN_S * NS_PER_S:
            return
        if self._stamp_ns:
            rate_hz = (frame - self._frame) * NS_PER_S / since_ns
            self._measured = (*self._measured[1 - SPANS :], rate_hz)
            self._evaluate()
        self._frame, self._stamp_ns = frame, stamp_ns

    def _evaluate(self) -> None:
        measured, nominal_hz = self._measured, self._nominal_hz
        if len(measured) < SPANS or max(measured) - min(measured) > AGREE * nominal_hz:
            return
        rate_hz = sum(measured) / SPANS
        off = rate_hz / nominal_hz - 1
        beyond = LIMIT / 2 * nominal_hz
        alike = min(measured) > nominal_hz + beyond or max(measured) < nominal_hz - beyond
        if abs(off) < LIMIT:
            self.rate_hz = None
        elif alike:
            self.rate_hz = rate_hz

    def opened(self, buffer_frames: int, now_ns: int) -> None:
        """A device was opened that may hold so much already."""
        self.restart()
        self.rate_hz = None
        self._credit_ns = SLACK_S * NS_PER_S + buffer_frames * NS_PER_S / self._nominal_hz
        self._paid_ns = now_ns

    def outrun(self, frames: int, now_ns: int) -> bool:
        """Whether the device brings more, with ``frames`` at ``now_ns``, than time allows."""
        credit_ns, since_ns = self._credit_ns, now_ns - self._paid_ns
        self._paid_ns = now_ns
        if since_ns > 0:
            credit_ns += FASTEST * since_ns
        if credit_ns > MOST_SLACK_NS:
            credit_ns = MOST_SLACK_NS
        self._credit_ns = credit_ns = credit_ns - frames * self._nominal_ns
        return credit_ns < 0


def too_fast(device: str) -> DeviceError:
    """What becomes of a source that ``outrun``s time."""
    return DeviceError(
        f"{device} delivers sound faster than real time, so it is not a sound card; name a card "
        "(`capstand devices` lists them)",
        EINVAL,
        refused=True,
    )


def describe_rate(nominal_hz: int, rate_hz: float) -> str:
    """What a person can do about it."""
    near = min(COMMON_RATES, key=lambda one: abs(one - rate_hz))
    if near == nominal_hz or abs(rate_hz / near - 1) > LIMIT / 2:
        return (
            f"the card says {nominal_hz} Hz and delivers about {round(rate_hz, -1):.0f} Hz: it "
            "loses data on the bus or its clock is wrong; try another rate_hz, port, cable or card"
        )
    return (
        f"the card says {nominal_hz} Hz and delivers {near} Hz: set rate_hz = {near}, if "
        "`capstand devices` lists it, or another rate"
    )
