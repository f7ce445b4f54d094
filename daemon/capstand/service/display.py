"""What a person sees: the line for systemctl, the live line of a terminal, the status table."""

import json
import sys

from capstand.accounting.stats import SIMULATED, StreamStats
from capstand.host import console
from capstand.text import clean

METER_DB = (-60.0, 0.0)
METER_WIDTH = 12
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def status_line(streams: list[StreamStats]) -> str:
    """One line for a tired person: trouble first, then rate, level, drift, loss and sinks."""
    return " | ".join(_stream_line(stream) for stream in streams)


def _stream_line(one: StreamStats) -> str:
    if one.captured_frames == 0 and one.trouble is None:
        return f"{one.name}: starting, {one.device}"
    parts = [f"{one.name}: "]
    if one.trouble is not None:
        parts.append(f"{one.health}: {one.trouble}; ")
    parts.append(f"{one.rate_hz} Hz, {level_words(one)}, {drift_words(one)}, {lost_words(one)}")
    if one.notice is not None:
        parts.append(f", {one.notice}")
    for sink in one.sinks:
        parts.append(f"; {sink.name}: {sink.detail}")
        if sink.dropped_frames:
            parts.append(f", dropped {sink.dropped_frames}")
    if one.simulated:
        parts.append(f"; {SIMULATED}")
    return "".join(parts)


def level_words(one: StreamStats) -> str:
    return "no level yet" if one.level_dbfs is None else f"{one.level_dbfs:.1f} dBFS"


def drift_words(one: StreamStats) -> str:
    if one.drift_ppm is None or not one.drift_settled:
        return "drift settling"
    return f"drift {one.drift_ppm:+.1f} ppm"


def lost_words(one: StreamStats) -> str:
    about = "about " if one.lost_estimated_frames else ""
    dropped = f", dropped {one.ring_dropped_frames}" if one.ring_dropped_frames else ""
    return f"lost {about}{one.lost_frames}{dropped}"


def meter(level_dbfs: float | None) -> str:
    """A bar of METER_WIDTH characters from −60 to 0 dBFS."""
    low, high = METER_DB
    share = 0.0 if level_dbfs is None else (max(low, min(high, level_dbfs)) - low) / (high - low)
    eighths = round(share * METER_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(METER_WIDTH)


class LiveLine:
    """The last line of a terminal, drawn again and again; nothing where stderr is no terminal."""

    def __init__(self, wanted: bool = True) -> None:
        self.active = wanted and sys.stderr.isatty()
        self._drawn = False

    def draw(self, streams: list[StreamStats]) -> None:
        if not self.active:
            return
        text = "  ".join(
            f"{stream.name} {'SIMULATED ' if stream.simulated else ''}▕{meter(stream.level_dbfs)}▏ "
            f"{level_words(stream)}  {drift_words(stream)}  "
            f"{lost_words(stream)}  " + ", ".join(f"→ {sink.detail}" for sink in stream.sinks)
            for stream in streams
        )
        width = max(1, console.columns() - 1)
        shown = clean.in_encoding(clean.line(text), sys.stderr.encoding)
        self._write("\r\033[K" + shown[:width])
        self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            self._write("\r\033[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal has gone
            self.active = False


def _loudness_lines(figures: object) -> list[str]:
    if not isinstance(figures, dict):
        return []
    return [
        f"  loudness  {figures['short_term_lufs']} LUFS short-term, "
        f"{figures['integrated_lufs']} LUFS integrated, "
        f"true peak {figures['max_true_peak_dbtp']} dBTP"
    ]


def status_table(answer: list[dict[str, object]]) -> str:
    """``capstand status`` for people."""
    lines = []
    for one in answer:
        level = one["level_dbfs"]
        drift = f"{one['drift_ppm']:+.1f} ppm" if one["drift_settled"] else "settling"
        counted = "counted exactly" if one["lost_exact"] else "partly estimated from time"
        lines += [
            f"{one['name']}  {one['health']}  {one['device']}  "
            f"{one['rate_hz']} Hz, {one['channels']} ch, {one['format']}",
            *([f"  source    {SIMULATED}"] if one.get("simulated") else []),
            *([f"  trouble   {one['trouble']}"] if one["trouble"] else []),
            f"  level     {f'{level} dBFS' if level is not None else 'none yet'}   drift {drift}",
            *_loudness_lines(one.get("loudness")),
            f"  frames    {one['produced_frames']} produced = {one['captured_frames']} captured "
            f"+ {one['lost_frames']} lost in {one['gaps']} gaps ({counted})",
        ]
        if ms := one.get("device_lost_ms_last_hour"):  # a daemon from before an upgrade has none
            lines.append(f"  bus       {ms} ms not delivered by the card in the last hour")
        if one.get("ring_dropped_frames"):
            lines.append(
                f"  dropped   {one['ring_dropped_frames']} frames were captured but did not reach "
                "the sinks: the push thread was delayed"
            )
        if one.get("notice"):
            lines.append(f"  notice    {one['notice']}")
        chain = one.get("process") or {}
        assert isinstance(chain, dict)
        lines += [
            f"  set       {change['key']} = {json.dumps(change['value'])} (file: "
            f"{json.dumps(change['file'])}), until the next reload or start"
            for change in chain.get("changes", ())
        ]
        if one["restarts"]:
            lines.append(
                f"  recovered stream restarted {one['restarts']} times, device opened "
                f"{one['opens']} times"
            )
        sinks = one["sinks"]
        assert isinstance(sinks, list)
        lines += [
            f"  → {sink['name']:<7} {sink['state']}; {sink['delivered_frames']} delivered, "
            f"{sink['dropped_frames']} dropped, {sink['in_flight_frames']} in flight; "
            f"{sink['detail']}" + (f"\n    trouble: {sink['trouble']}" if sink["trouble"] else "")
            for sink in sinks
        ]
    return "\n".join(lines)
