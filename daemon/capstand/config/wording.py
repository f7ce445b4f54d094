"""How a value of the configuration is shown to people, and what it was probably meant to be.

A file may hold a secret in any place: what stands where one is meant, or looks like one, is
described and not shown.
"""

import re

from capstand.config.slips import odd_sign

Keys = tuple[str | int, ...]
"""The way to a value from the top of the document."""

SECRET_WORDS = re.compile(
    r"token|secret|passw|credential|certificate|api_?key|private|auth|^key$|url", re.IGNORECASE
)
LONGEST_LOOK = 300
"""More of a text than is ever shown."""
PLAIN = re.compile(r"[a-z_]{1,20}")
HARMLESS = re.compile(r"[A-Za-z]{0,12}")
SECRETIVE = re.compile(
    r"[0-9a-fA-F]{20,}|00[67][A-Za-z0-9+/=]{20,}|-----BEGIN|://|:[^/:@]+@"
    r"|(?=[A-Za-z0-9+_=~-]*[0-9])(?=[A-Za-z0-9+_=~-]*[A-Za-z])[A-Za-z0-9+_=~-]{24,}"
    r"|^(?=.*[0-9])[A-Za-z0-9+/=]{32,}$"
)


def hidden(keys: Keys, value: object) -> bool:
    """Whether a secret is meant to be here, or may be by mistake: no text beside a token's keys is
    shown, but for a plain word as its ``source`` or ``method``."""
    names = [key for key in keys if isinstance(key, str)]
    if (
        names[-1:] in (["source"], ["method"])
        and isinstance(value, str)
        and HARMLESS.fullmatch(value)
    ):
        return False
    near = near_secret(names)
    return near if isinstance(value, str) else bool(names and SECRET_WORDS.search(names[-1]))


def near_secret(names: list[str]) -> bool:
    return any(SECRET_WORDS.search(name) for name in names)


def secretive(text: str) -> bool:
    """Whether a text looks like a key, a token, a certificate or an address with one in it."""
    return SECRETIVE.search(text[:LONGEST_LOOK]) is not None


def described(value: object) -> str:
    """A value that may be a secret."""
    if isinstance(value, str) and value:
        return f"this text of {len(value)} characters"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "this number"
    return shown(value)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if secretive(value):
            return described(value)
        return '"' + (value if len(value) <= 60 else value[:57] + "...") + '"'
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "a huge number"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def kind_of(value: object) -> str:
    """What stands where a table should; not a text itself, which may be a secret in its place."""
    return "a text" if isinstance(value, str) else shown(value)


def listed(choices: tuple[str, ...]) -> str:
    return ", ".join(f'"{word}"' for word in choices)


def known_keys(choices: tuple[str, ...]) -> str:
    return "; known here: " + ", ".join(choices)


def meant(value: object, choices: tuple[str, ...]) -> str:
    """A word of ``choices`` that is near: the same but for case and signs, in it, or alike."""
    import difflib  # only where something is wrong

    if not choices or not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value)[:100]
    plain = {re.sub(r"[^a-z0-9]", "", word.lower()): word for word in choices}
    bare = re.sub(r"[^a-z0-9]", "", text.lower())
    near = [plain[bare]] if bare in plain else []
    near = near or [word for one, word in plain.items() if bare and len(one) > 4 and one in bare]
    near = near or [word for one, word in plain.items() if _digits(bare) == _digits(one) != ""][:1]
    near = near or difflib.get_close_matches(text, choices, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _digits(text: str) -> str:
    return "".join(re.findall(r"[0-9]+", text))


def number_in(value: object) -> float | None:
    """A number, or the number that a text is, maybe with its unit."""
    if type(value) in (int, float):
        return float(value) if abs(value) < 1e300 else None  # type: ignore[arg-type]
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([+-]?\d{1,12}(\.\d{1,6})?)\s*(k?hz|m?s|k|db|dbfs|ppm)?\s*",
                             value, re.IGNORECASE)  # fmt: skip
        return float(found[1]) if found else None
    return None


def fix_for(value: object) -> str:
    """How to mend a text that has not its shape."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "put the text in quotation marks"
    if not isinstance(value, str):
        return ""
    if sign := odd_sign(value):
        return f"it has {sign}"
    if value != value.strip():
        return "delete the space at its beginning or end"
    if value.startswith("~"):
        return "write the whole path of the home directory instead of ~"
    if "$" in value:
        return "variables are not replaced; write what is meant"
    if value.startswith("file:"):
        return "write the path alone, without file:"
    return ""
