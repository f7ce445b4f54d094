"""The configuration that is shipped: right as it is, and right about every key it explains."""

import re
from pathlib import Path
from typing import Any

import tomli

from capstand.capture.types.file import FileConfig
from capstand.capture.types.pipe import PipeConfig
from capstand.capture.types.socket import SocketConfig
from capstand.capture.types.synthetic import SyntheticConfig
from capstand.config.decode import decode
from capstand.config.schema import CaptureConfig, Config, LedgerConfig, SpoolConfig
from capstand.sinks.types.agora import (
    AgoraSinkConfig,
    LocalTokenConfig,
    TokenFileConfig,
    TokenServerConfig,
)
from capstand.sinks.types.alsa import AlsaSinkConfig
from capstand.sinks.types.file import FileSinkConfig
from capstand.sinks.types.socket import SocketSinkConfig

SHIPPED = Path(__file__).parents[2] / "config/capstand.toml"
TABLES: dict[str, list[type[Any]]] = {
    "[stream.capture]": [CaptureConfig],
    "[stream.capture.synthetic]": [SyntheticConfig],
    "[stream.capture.socket]": [SocketConfig],
    "[stream.capture.pipe]": [PipeConfig],
    "[stream.capture.file]": [FileConfig],
    "[[stream.sink]] file": [FileSinkConfig],
    "[stream.sink.spool]": [SpoolConfig],
    "[[stream.sink]] agora": [AgoraSinkConfig],
    "[[stream.sink]] alsa": [AlsaSinkConfig],
    "[[stream.sink]] socket": [SocketSinkConfig],
    "[stream.sink.token]": [TokenServerConfig, TokenFileConfig, LocalTokenConfig],
    "[ledger]": [LedgerConfig],
}


def uncommented() -> str:
    """The file with every key that is commented out in force."""
    return re.sub(
        r"^# (?=\[|[A-Za-z_]+ = |\"[A-Za-z ]+\" = )", "", SHIPPED.read_text(), flags=re.MULTILINE
    )


def explained() -> dict[str, dict[str, Any]]:
    """The keys and values of each table, commented out or not, as they stand."""
    tables: dict[str, dict[str, Any]] = {}
    for part in re.split(r"^(?=\[)", uncommented(), flags=re.MULTILINE)[1:]:
        head, body = part.split("\n", 1)
        name = head.split("#")[0].strip()
        keys = tomli.loads(body)
        name += f" {keys['type']}" if name == "[[stream.sink]]" else ""
        tables[name] = keys
    return tables


def test_it_is_right_as_it_is() -> None:
    """The file as shipped decodes to one stream into recordings."""
    (stream,) = decode(SHIPPED.read_text(), str(SHIPPED), Config).stream
    assert [one.type for one in stream.sink] == ["file"]


def test_it_explains_every_key() -> None:
    """Each key that a table may have stands in the file, and no other."""
    tables = explained()
    for name, kinds in TABLES.items():
        known = {key for kind in kinds for key in kind._fields}
        known -= {
            "sink",
            "token",
            "spool",
            *(["source", "controls"] if CaptureConfig in kinds else []),
        }
        assert set(tables[name]) == known, name


def test_what_is_commented_out_is_the_default() -> None:
    """A key that is commented out shows its default; those of a table that is commented out as a
    whole, and examples of keys without one, apart."""
    tables = explained()
    examples = {"file", "app_id", "channel", "uid", "rate_hz", "channels", "pick", "path", "type"}
    examples |= {"group", "mode", "input", "command"}
    names = (*(one for one in TABLES if one.startswith("[stream.capture")), "[[stream.sink]] file")
    for name in names:
        defaults = TABLES[name][0]._field_defaults
        for key, value in tables[name].items():
            if key not in examples and key in defaults:
                assert (value if value != [] else ()) == defaults[key], f"{name} {key}"
    assert tables["[stream.sink.spool]"] == SpoolConfig._field_defaults
    assert tables["[ledger]"] == LedgerConfig._field_defaults
    for name, kind in (("alsa", AlsaSinkConfig), ("socket", SocketSinkConfig)):
        table = tables[f"[[stream.sink]] {name}"]
        for key, value in kind._field_defaults.items():
            assert value is None or table[key] == value, f"{name} {key}"
    agora = {key: tables["[[stream.sink]] agora"][key] for key in AgoraSinkConfig._field_defaults
             if key not in examples | {"token", "spool"}}  # fmt: skip
    assert agora == {key: AgoraSinkConfig._field_defaults[key] for key in agora}


def test_the_channel_in_it_is_right_once_uncommented() -> None:
    """With its comment signs taken away, the channel and its token are a right configuration."""
    text = uncommented()
    for key in ('path = "/etc/capstand/agora.token"', "certificate = ", "[stream.capture.synth"):
        assert key in text
    text = re.sub(r"^\[stream.capture\.\w+\].*?(?=^\[)", "", text, flags=re.M | re.S)
    text = re.sub(
        r"^(path = \"/etc/capstand/agora.token\"|certificate = ).*\n", "", text, flags=re.M
    )
    (stream,) = decode(text, "shipped", Config).stream
    agora = stream.sink[1]
    assert isinstance(agora, AgoraSinkConfig) and isinstance(agora.token, TokenServerConfig)


def test_the_units_of_system_and_user_agree() -> None:
    """A user's service is reloaded, watched, stopped and kept alive as the system's is."""
    units = SHIPPED.parents[1] / "systemd"
    system, user = (
        (units / one).read_text().partition("[Service]")[2].splitlines()
        for one in ("capstand.service", "user/capstand.service")
    )
    words = ("Type=", "NotifyAccess=", "ExecReload=", "Restart", "Watchdog", "Timeout", "KillMode=")
    lines = [
        one
        for one in system
        if one.startswith((*words, "OOMPolicy=", "LimitRT", "LimitNOFILE=", "LimitCORE="))
    ]
    assert len(lines) >= 13 and set(lines) <= set(user)


COST = {
    "PrivateTmp": "dsnoop, whose programs meet in /tmp",
    "RemoveIPC": "dsnoop, whose memory others have too",
    "PrivateUsers": "orders by members of the group audio, whose number it hides",
    "ProtectProc": "the name of the program that holds the card",
    "ProcSubset": "/proc/asound",
    "ProtectClock": "whether the clock is synchronised",
    "PrivateNetwork": "udev's word, and channels",
    "PrivateDevices": "the cards",
    "RestrictRealtime": "the priority of capture",
    "MemoryDenyWriteExecute": "native libraries that write code into memory",
    "IPAddressDeny": "channels",
}


def test_the_unit_gives_up_nothing_that_a_feature_needs() -> None:
    """What costs a feature stands in a drop-in, which says so; the unit may always dump no core,
    and has descriptors for many streams."""
    units = SHIPPED.parents[1] / "systemd"
    lines = (units / "capstand.service").read_text().splitlines()
    assert not [one for one in lines if one.partition("=")[0] in COST]
    assert {"LimitCORE=0", "LimitNOFILE=8192", "SupplementaryGroups=audio", "UMask=0022"} <= {
        *lines
    }
    (filters,) = [
        lines.index(one) for one in lines if one == "SystemCallFilter=~@privileged @resources"
    ]
    after = " ".join(one for one in lines[filters + 1 :] if one.startswith("SystemCallFilter="))
    assert all(name in after for name in ("sched_setscheduler", "fchown", "adjtimex"))
    for path in (units / "drop-ins").iterdir():
        said = False
        for line in path.read_text().splitlines():
            said = line.startswith("# Costs: ") or (said and bool(line))
            assert said or line.startswith(("#", "[Service]")) or not line, f"{path.name}: {line}"
