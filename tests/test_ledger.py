"""The ledger on disk: one line per event, and a disk that refuses is no reason to stop."""

import json
from pathlib import Path

from capstand.ledger import LIMIT_BYTES, Ledger
from tests.patience import PATIENCE_S


def test_events_are_lines_in_order(tmp_path: Path) -> None:
    """Each event is one line of JSON with its times, in the file of its stream, in order."""
    ledger = Ledger(tmp_path / "ledger")
    for number in range(100):
        ledger.write("mic", "gap", frames=number)
    ledger.write("line", "start", device="hw:0\n")
    ledger.close(PATIENCE_S)
    events = [json.loads(one) for one in ledger.path("mic").read_text().splitlines()]
    assert [(one["event"], one["frames"]) for one in events] == [("gap", n) for n in range(100)]
    times = [one["monotonic_ns"] for one in events]
    assert times == sorted(times)
    assert all(one["at"].endswith("+00:00") for one in events)
    (start,) = ledger.path("line").read_text().splitlines()
    assert json.loads(start)["device"] == "hw:0\n"
    assert ledger.trouble is None


def test_a_full_file_makes_room(tmp_path: Path) -> None:
    """A file past its limit becomes .1, so that months fit on a small disk."""
    ledger = Ledger(tmp_path)
    ledger.path("mic").write_bytes(b"x" * (LIMIT_BYTES + 1))
    ledger.write("mic", "total")
    ledger.close(PATIENCE_S)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mic.jsonl", "mic.jsonl.1"]
    assert (tmp_path / "mic.jsonl.1").stat().st_size == LIMIT_BYTES + 1
    assert ledger.path("mic").read_text().count("\n") == 1


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    """What comes after a line that a power cut tore is a line of its own."""
    ledger = Ledger(tmp_path)
    ledger.path("mic").write_bytes(b'{"event": "start"}\n{"event": "ga')
    ledger.write("mic", "start")
    ledger.write("mic", "stop")
    ledger.close(PATIENCE_S)
    lines = ledger.path("mic").read_text().splitlines()
    assert lines[1] == '{"event": "ga'
    assert [json.loads(lines[at])["event"] for at in (0, 2, 3)] == ["start", "start", "stop"]


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    """Where the ledger cannot be written, ``trouble`` says where and why."""
    (tmp_path / "ledger").write_text("no directory")
    ledger = Ledger(tmp_path / "ledger")
    ledger.write("mic", "start")
    ledger.close(PATIENCE_S)
    assert ledger.trouble == (
        f"{tmp_path}/ledger/mic.jsonl: File exists; its lines wait in memory; "
        "check that the disk has room and may be written"
    )
