"""What others chose is shown as one printable line of bounded length, in every encoding."""

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstand.devices import holder
from capstand.service import display
from capstand.service.display import LiveLine
from capstand.text import clean
from tests.line import Keep, Line, capture
from tests.soundcards import Slots

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=20,
)
HOSTILE = "\x1b[2J\x07\rmic\n12:00:00 error: forged\x00\u202egnirts\udcff\x9b\u2028\ufeff\U000e0041"


@given(ANY_TEXT, st.integers(1, 100))
def test_any_text_becomes_one_bounded_printable_line(text: str, longest: int) -> None:
    """Whatever it was, no control, no direction, no surrogate and no end of a line is in it."""
    shown = clean.line(text, longest)
    assert shown.isprintable() and len(shown) <= longest
    assert shown.encode().decode() == shown
    assert clean.line(shown, longest) == shown


def test_what_is_right_stays_as_it_is() -> None:
    """Every script is shown; only what would steer is not."""
    for text in ("", "Mikrofon für Ü → 3 µV", "マイク", "ميكروفون", "🎙"):
        assert clean.line(text) == text
    assert clean.line("a\nb\tc\r\n") == "a b c"
    assert clean.line(HOSTILE) == (
        "\\x1b[2J\\x07 mic 12:00:00 error: forged\\x00\\u202egnirts\\udcff\\x9b \\ufeff\\U000e0041"
    )
    assert clean.line("x" * 5000) == "x" * (clean.LONGEST - 1) + "…"


def test_an_object_without_words_is_told() -> None:
    """Even what fails at str() does not fail here."""

    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert clean.line(Bad()) == "<Bad without words: RuntimeError>"
    assert clean.tree({"x": Bad()}) == {"x": "<Bad without words: RuntimeError>"}


def test_lines_are_bounded_too() -> None:
    """A traceback keeps its lines, its beginning and its end."""
    text = "\n".join(f"{n}\x1b" for n in range(1000))
    shown = clean.lines(text, 10).split("\n")
    assert len(shown) == 10
    assert (shown[0], shown[5], shown[-1]) == ("0\\x1b", "… 991 lines left out", "999\\x1b")


@given(ANY_TEXT, st.integers(3, 50))
def test_a_field_is_bounded_in_bytes(text: str, most: int) -> None:
    """What has a limit in bytes is cut between two characters."""
    raw = clean.field(text, most).encode()
    assert len(raw) <= most and raw.decode().isprintable()


@given(ANY_VALUE)
def test_any_value_is_json_everywhere(value: object) -> None:
    """No number that JSON has not, no lone surrogate, no control character."""
    shown = clean.tree(value)
    raw = json.dumps(shown, allow_nan=False, ensure_ascii=False).encode()
    assert json.loads(raw) == shown


def test_a_value_is_bounded_in_number_and_depth() -> None:
    """Neither a million values nor a thousand levels get through, and none is a fault."""
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    assert json.dumps(clean.tree(deep)).count("[") <= clean.DEEPEST + 1
    wide = clean.tree({str(n): [n] * 1000 for n in range(1000)}, most=5000)
    assert len(json.dumps(wide)) < 40_000
    assert clean.tree([float("nan"), float("-inf"), 10**5000]) == [None, None, None]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "koi8-r", "utf-8", "no-such", None])
def test_every_encoding_has_a_likeness(encoding: str | None) -> None:
    """Where there is no arrow, "->" stands for it; what has no likeness is written as a number."""
    shown = clean.in_encoding("▕██▌▏ → 1 × 2… マ\udcff", encoding)
    if encoding == "utf-8":
        assert shown == "▕██▌▏ → 1 × 2… マ\\udcff"
    elif encoding != "latin-1" and encoding != "koi8-r":
        assert shown == "|##=| -> 1 x 2... \\u30de\\udcff"
    shown.encode(encoding if encoding not in ("no-such", None) else "ascii")


# The borders


def test_the_name_of_a_process_is_its_own_choice(tmp_path: Path) -> None:
    """A process that holds the card may call itself anything, and so may its control group."""
    folder = tmp_path / "proc/7"
    folder.mkdir(parents=True)
    (folder / "status").write_text("Tgid:\t7\n")
    (folder / "comm").write_bytes(b"a\nSTOPPING=1\x1b[2\xff\n")
    (folder / "cgroup").write_text("0::/x\x1b]0;y\x07.service\n")
    shown = holder.process_name("7", tmp_path)
    assert shown is not None and shown.isprintable()
    assert shown.startswith("a STOPPING=1\\x1b[2")


def test_a_card_may_be_called_anything(tmp_path: Path) -> None:
    """A name with escapes and line ends, or no text at all, is one line; the list goes on, for
    people and for programs."""
    slots = Slots(tmp_path)
    for number, identity in enumerate(("\x1b[2J\x07", "Two")):
        slots.plug(number, identity=identity)
    (tmp_path / "proc/asound").mkdir(parents=True)
    (tmp_path / "proc/asound/pcm").write_bytes(
        b"00-00: USB\xc3 \x1b[2J : x : capture 1\n01-00: Second : x : capture 1\n"
    )
    script = (
        "import sys; from pathlib import Path; from capstand.cli import main as cli; "
        "from capstand.devices import listing as devices; "
        f"found = devices.find(Path({str(tmp_path)!r})); devices.find = lambda: found; "
        "sys.exit(cli.main(['devices', *sys.argv[1:]]))"
    )
    told = [
        subprocess.run([sys.executable, "-c", script, *how], capture_output=True, check=True).stdout
        for how in ([], ["--json"])
    ]
    assert all(line.isprintable() for line in told[0].decode().splitlines())
    assert [one["name"] for one in json.loads(told[1])["devices"]] == [
        "\\x1b[2J\\x07, USB\ufffd \\x1b[2J",
        "Two, Second",
    ]


class Terminal(io.TextIOWrapper):
    """A terminal in an encoding of its own."""

    def __init__(self, encoding: str) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, errors="strict", newline="")

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("columns", ["0", "1", "-7", "40", "x"])
def test_the_live_line_is_one_clean_line(
    monkeypatch: pytest.MonkeyPatch, encoding: str, columns: str
) -> None:
    """Whatever a sink says of itself, the live line is one line, no wider than the terminal, in
    the terminal's encoding; a terminal that has gone ends it and nothing else."""
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    sink = Keep()
    sink.detail = HOSTILE * 50
    stats = Line(capture(), [sink]).stats()
    live = LiveLine()
    live.draw([stats])
    text = terminal.raw_bytes.getvalue().decode(encoding)
    assert text.startswith("\r\033[K")
    drawn = text.removeprefix("\r\033[K")
    assert drawn.isprintable()
    assert len(drawn) <= (39 if columns == "40" else 1 if columns == "1" else 500)
    terminal.close()
    live.draw([stats])
    live.clear()
    assert not live.active


def test_the_table_needs_no_key_to_be_text() -> None:
    """The table of `capstand status` is drawn from what was cleaned when it came."""
    stats = Line(capture(), [Keep()]).stats().as_json()
    stats["trouble"], stats["sinks"][0]["detail"] = HOSTILE, HOSTILE
    cleaned = clean.tree([stats])
    assert isinstance(cleaned, list)
    assert all(line.isprintable() for line in display.status_table(cleaned).splitlines())


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_that_is_nested_without_end_is_refused(opening: str) -> None:
    """However deep, it is an error and not the end of the process, in a thread with a small stack
    too."""
    deep = opening * 100_000
    found: list[str] = []

    def parse() -> None:
        with pytest.raises(ValueError, match="nested too deeply"):
            clean.parsed(deep.encode())
        found.append(str(clean.parsed("[" * 100 + "]" * 100)))
        assert clean.parsed(json.dumps(["[" * 9, "\\", '"['] * 200)) == ["[" * 9, "\\", '"['] * 200

    threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=parse)
        thread.start()
    finally:
        threading.stack_size(0)
    thread.join()
    assert found == ["[" * 100 + "]" * 100]
