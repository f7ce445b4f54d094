"""A stream whose chain listens to another stream: echo cancellation with real processes."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import soundfile

from capstand.audio.block import NS_PER_S, AudioFormat, SampleFormat
from capstand.capture import wire
from capstand.capture.types.socket import SocketConfig
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.schema import CaptureConfig, StreamConfig
from capstand.processes import forkserver
from capstand.sinks.types.file import FileSinkConfig
from capstand.stream.stream import Stream
from tests.figures import figure
from tests.patience import PATIENCE_S
from tests.processing.signals import settings
from tests.processing.speech import Mono, echoed, erle, speech, white

pytest.importorskip("pywebrtc_audio")

RATE = 48_000
FRAMES = 480
AUDIO = AudioFormat(RATE, 1, SampleFormat.S16_LE)
LATE_NS = NS_PER_S // 4
"""The near side's blocks come so much later, with the times at which they were sampled: however
busy the machine is, the far side's are there before."""


class Player:
    """A program that brings a stream its sound in real time, once it begins, and comes back when it
    is cut off."""

    def __init__(self, path: Path, sound: Mono, late_ns: int) -> None:
        self._path, self._late_ns = path, late_ns
        self._samples = np.rint(sound * 32767).astype("<i2").tobytes()
        self._left = len(sound)
        self.link: socket.socket | None = None
        self.begins_ns = 0
        self.played = 0

    @property
    def done(self) -> bool:
        return self._left < FRAMES

    def play(self) -> None:
        """What is due."""
        if self.link is None:
            self.link = self._connect()
        due_ns = time.monotonic_ns() - self.begins_ns - self._late_ns
        while self.begins_ns and not self.done and self._ends(self.played + FRAMES) <= due_ns:
            first, self.played = self.played, self.played + FRAMES
            self._left -= FRAMES
            if self.link is not None:
                self._send(self.link, first)

    def _ends(self, frames: int) -> int:
        return frames * NS_PER_S // RATE

    def _send(self, link: socket.socket, first: int) -> None:
        at_ns = self.begins_ns + self._ends(first)
        samples = self._samples[2 * first : 2 * (first + FRAMES)]
        try:
            link.sendall(wire.BLOCK.pack(wire.BLOCK_MAGIC, FRAMES, first, at_ns) + samples)
        except OSError:
            self.close()

    def _connect(self) -> socket.socket | None:
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(self._path))
            link.sendall(wire.head(AUDIO, live=True))
        except OSError:
            link.close()
            return None
        return link

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
            self.link = None


class Room:
    """A microphone, "mic", and its loudspeaker, "far", looked after as the daemon does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.streams: dict[str, Stream] = {}
        self.players: list[Player] = []
        self.concerns: list[str] = []

    def bring(self, name: str, config: StreamConfig) -> Stream:
        """A stream of this name begins, in another's place if there was one."""
        before = self.streams.pop(name, None)
        self.streams[name] = fresh = Stream(config, self.folder / "state")
        for one in self.streams.values():
            one.listen_to([*self.streams.values()])
        if before is not None:
            self.end(before)
        fresh.start()
        return fresh

    def mic(self, *process: Any, device: str = "synthetic", source: Any = None) -> StreamConfig:
        sinks = tuple(
            FileSinkConfig("file", str(self.folder / input_), name=input_, input=input_)
            for input_ in (("captured", "processed") if process else ("captured",))
        )
        return StreamConfig("mic", capture(device, source), sinks, process)

    def look(self) -> None:
        for one in self.players:
            one.play()
        for stream in self.streams.values():
            report = stream.report(time.monotonic_ns())
            assert report.stats.balanced, report.stats
            if report.processing is not None:
                self.concerns.append(report.processing)

    def until(self, state: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        self.look()
        while not state():
            assert time.monotonic() < deadline, [one.stats(0) for one in self.streams.values()]
            time.sleep(0.005)
            self.look()

    def captured(self) -> int:
        return self.streams["mic"].stats(time.monotonic_ns()).captured_frames

    def delivered(self) -> int:
        (*_, sink) = self.streams["mic"].stats(time.monotonic_ns()).sinks
        return sink.delivered_frames

    def process(self) -> dict[str, Any]:
        return self.streams["mic"].stats(0).process or {}

    def stage(self) -> dict[str, Any]:
        """What is told of the canceller; nothing while its process says nothing."""
        stages: Any = self.process().get("stages")
        return dict(stages[0]) if stages else {}

    def missing(self) -> int | None:
        found: int | None = self.stage().get("reference_missing_frames")
        return found

    def hears(self) -> None:
        """Until nothing of the reference has been missing for a second and a half of sound."""
        seen: list[Any] = [None, 0]

        def steady() -> bool:
            if (missing := self.missing()) is None or missing != seen[0]:
                seen[:] = missing, self.delivered()
            return missing is not None and self.delivered() - seen[1] > 3 * RATE // 2

        self.until(steady)

    def misses(self) -> None:
        """Until more of it is missing than before, while sound flows."""
        self.until(lambda: self.missing() is not None)
        before, delivered = self.missing() or 0, self.delivered()
        self.until(lambda: (self.missing() or 0) > before + RATE // 2)
        self.until(lambda: self.delivered() > delivered + RATE // 2)

    def end(self, stream: Stream) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        assert stream.drain(deadline) == []
        assert stream.close(deadline) == []
        assert stream.report(time.monotonic_ns()).stats.balanced
        ended = stream.stats(0)
        assert all(sink.in_flight_frames == 0 for sink in ended.sinks)
        stream.dispose()
        return ended

    def recorded(self, input_: str) -> Mono:
        files = sorted((self.folder / input_).glob("*.wav"))
        parts = [soundfile.read(file, dtype="float32")[0] for file in files]
        return np.concatenate(parts).astype(np.float32)


def capture(device: str, source: Any, **keys: Any) -> CaptureConfig:
    keys = {"channels": 1, "rt_priority": 0, "buffer_ms": 4000.0} | keys
    return CaptureConfig(device, source=source, **keys)


def canceller(**keys: Any) -> Any:
    return settings("echo-cancellation", reference="far", **keys)


@pytest.fixture
def room() -> Iterator[Room]:
    with TemporaryDirectory() as folder:  # a short path, for the sockets
        one = Room(Path(folder))
        yield one
        for player in one.players:
            player.close()
        for stream in one.streams.values():
            stream.process.abandon()
            if stream._chain is not None:
                stream._chain.process.abandon()
        forkserver.shared.end()


def test_the_echo_of_what_another_stream_plays_falls_by_20_db(room: Room) -> None:
    """In the recording of the processed sound. The other stream has no sink; in the middle its
    process is killed: nothing of the microphone is lost, what was missing is counted, and the echo
    falls again."""
    seconds, killed_s = 20, 9
    said = speech().samples[: seconds * RATE] * np.float32(2)
    near = echoed(said) + white(len(said), -80)
    far, mic = (SocketConfig(str(room.folder / one)) for one in ("far", "mic"))
    other = room.bring("far", StreamConfig("far", capture("socket", far)))
    room.bring("mic", room.mic(canceller(), device="socket", source=mic))
    played = Player(room.folder / "far", said, 0)
    heard = Player(room.folder / "mic", near, LATE_NS)
    room.players = [played, heard]
    room.until(lambda: all(one.link is not None for one in room.players))
    played.begins_ns = heard.begins_ns = time.monotonic_ns()
    room.until(lambda: heard.played >= killed_s * RATE)
    room.until(lambda: room.stage().get("delay_frames") == 2829)
    before = room.missing()
    os.kill(other.process.pid or 0, signal.SIGKILL)
    room.until(lambda: played.done and heard.done)
    room.until(lambda: room.captured() == heard.played)
    after = room.missing()
    ended = room.end(room.streams.pop("mic"))
    raw, left = room.recorded("captured"), room.recorded("processed")
    assert len(raw) == ended.captured_frames == heard.played
    dropped = [sink.dropped_frames for sink in ended.sinks]
    assert dropped[0] == 0
    if any(dropped) or room.concerns:  # the machine gave the chain too little time
        return
    assert len(left) == len(raw) and after > before  # type: ignore[operator]
    for part, from_s, to_s in (("a process", 5, killed_s), ("the next one", 15, seconds)):
        found = erle(raw[: to_s * RATE], left[: to_s * RATE], 2829, from_s)
        figure(f"echo cancellation of a stream, reference by {part}", f"{found:.0f} dB")
        assert found >= 20


def test_who_is_listened_to_may_come_change_and_go(room: Room) -> None:
    """As reloads do it: a chain that begins to listen, a reference with another rate and period in
    its place, and none at all, after which even a chain's new process finds what it was given. The
    microphone's sound goes on all the time."""
    source = SyntheticConfig("noise")
    far = room.bring("far", StreamConfig("far", capture("synthetic", source)))
    mic = room.bring("mic", room.mic(settings("gain", gain_db=0.0)))
    room.until(lambda: far.stats(time.monotonic_ns()).health == "OK")
    room.until(lambda: room.delivered() > RATE // 2)
    mic.exchange(room.mic(canceller(hold_ms=500.0)))
    room.hears()
    room.until(lambda: room.process()["delay_ms"] == round(500 + 909 / 48, 3))
    pid = room.process()["pid"]
    other = capture("synthetic", source, rate_hz=44_100, channels=2, period_ms=40.0)
    room.bring("far", StreamConfig("far", other))
    room.hears()
    assert room.process()["pid"] == pid or room.concerns

    room.end(room.streams.pop("far"))
    room.misses()
    mic.exchange(room.mic(canceller(hold_ms=500.0)))  # which changes nothing
    counted = [room.missing() or 0]

    def counts_on() -> bool:
        counted.append(room.missing() or 0)
        return counted[-1] > counted[0] + RATE

    room.until(counts_on)
    deaf = "process 1 (echo-cancellation): no sound comes from its reference, so no echo is removed"
    room.until(lambda: mic.stats(time.monotonic_ns()).trouble == deaf)
    assert counted == sorted(counted) or room.concerns
    os.kill(mic._chain.process.pid, signal.SIGKILL)  # type: ignore[union-attr,arg-type]
    room.until(lambda: room.process()["pid"] not in (pid, None))
    room.misses()
    mic.exchange(room.mic(settings("gain", gain_db=0.0)))
    room.until(lambda: room.stage().get("type") == "gain")
    assert mic._chain is not None and not mic._chain._sidechains
    ended = room.end(room.streams.pop("mic"))
    raw, processed = ended.sinks
    assert raw.delivered_frames == ended.captured_frames
    assert processed.delivered_frames + processed.dropped_frames == processed.captured_frames
