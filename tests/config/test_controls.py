"""The table [stream.capture.controls]: what a card's own controls are to be set to."""

import re
from pathlib import Path

import pytest

from capstand.config.controls import Setting
from capstand.config.decode import decode
from capstand.config.schema import Config
from capstand.errors import ConfigError


def read(lines: str, device: str = "hw:0") -> Config:
    text = (
        f'[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "{device}"\n'
        f'[stream.capture.controls]\n{lines}\n[[stream.sink]]\ntype = "file"\npath = "/a"\n'
    )
    return decode(text, "c.toml", Config)


@pytest.mark.parametrize(
    ("value", "text", "on", "percent", "db"),
    [
        ('"80%"', "80%", None, 80, None),
        ('"100 %"', "100 %", None, 100, None),
        ('"-6 dB"', "-6 dB", None, None, -6.0),
        ('"+1.25db"', "+1.25db", None, None, 1.25),
        ('"Rear Mic"', "Rear Mic", None, None, None),
        ("true", None, True, None, None),
        ("false", None, False, None, None),
        ('["80%", false]', "80%", False, 80, None),
        ('[true, "0%"]', "0%", True, 0, None),
        ('["-6 dB"]', "-6 dB", None, None, -6.0),
    ],
)
def test_a_volume_a_switch_or_an_item(
    value: str, text: str | None, on: bool | None, percent: int | None, db: float | None
) -> None:
    """In percent or dB, true or false, a text; a volume and a switch together as an array."""
    ((name, setting),) = read(f'"Auto Gain Control" = {value}').stream[0].capture.controls
    assert (name, setting) == ("Auto Gain Control", Setting(text, on))
    assert (setting.percent, setting.db) == (percent, db)


@pytest.mark.parametrize(
    ("line", "key", "found"),
    [
        ("Mic = 80", "Mic", "80"),
        ("Mic = 0.8", "Mic", "0.8"),
        ('Mic = "101%"', "Mic", '"101%"'),
        ('Mic = "-5%"', "Mic", '"-5%"'),
        ('Mic = "12.5%"', "Mic", '"12.5%"'),
        ('Mic = ""', "Mic", '""'),
        ("Mic = []", "Mic", "an array"),
        ("Mic = [true, false]", "Mic", "an array"),
        ('Mic = ["1%", "2%"]', "Mic", "an array"),
        ("Mic = {a = 1}", "Mic", "a table"),
        ('Mic = "\\u001b[2J"', "Mic", '"\\x1b[2J"'),
        ('Mic = "a\\u202eb"', "Mic", '"a\\u202eb"'),
    ],
)
def test_a_wrong_value_is_told_with_its_line(line: str, key: str, found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(line)
    (fault,) = caught.value.faults
    assert fault.startswith(f"c.toml:6: stream.mic.capture.controls.{key}: {found}: expected a vol")
    assert fault.isprintable()


def test_every_fault_is_told() -> None:
    """Wrong names and wrong values, each on its line."""
    with pytest.raises(ConfigError) as caught:
        read('" Mic" = true\n"M\\u0007ic" = true\nCapture = 3')
    name = "the name of a control, as `capstand devices` prints it"
    assert [one.split(": ", 1)[0] for one in caught.value.faults] == [
        *("c.toml:6", "c.toml:7", "c.toml:8"),
    ]
    assert all(name in one for one in caught.value.faults[:2])


def test_a_table_of_another_shape() -> None:
    with pytest.raises(ConfigError) as caught:
        read("\n".join(f"c{number} = true" for number in range(33)))
    assert caught.value.faults == [
        "c.toml:5: stream.mic.capture.controls: 33 keys are more than 32"
    ]
    text = '[[stream]]\nname = "mic"\n[stream.capture]\ndevice = "hw:0"\ncontrols = true\n'
    with pytest.raises(ConfigError) as caught:
        decode(text + '[[stream.sink]]\ntype = "file"\npath = "/a"\n', "c.toml", Config)
    assert (
        "controls: true is not a table; write [stream.capture.controls]" in caught.value.faults[0]
    )


def test_the_example_of_the_documentation_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs/devices.md").read_text()
    (example,) = re.findall(r"```toml\n\[stream.capture.controls\]\n(.*?)```", text, re.DOTALL)
    controls = dict(read(example).stream[0].capture.controls)
    assert controls["Mic"] == Setting("80%", True) and controls["Mic Boost"].db == 20


@pytest.mark.parametrize("device", ["synthetic", "socket"])
def test_only_a_sound_card_has_controls(device: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("Mic = true", device)
    assert caught.value.faults == [
        f'c.toml:5: stream.mic.capture.controls: "{device}" is not a sound card and has none; '
        "delete the table"
    ]
