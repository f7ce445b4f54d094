"""What a person probably did where a file is not TOML: named, with the mend, on its line.

The parser says where it stopped and what it expected there; what stands there is told in words of
our own. Nothing of the line is repeated but names of our own keys and tables: a line may hold a
secret, and what a file holds must not steer a terminal.

Pure. Thread: any.
"""

import re
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

QUOTES = (
    "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02\u2018\u2019\u201a\u201b\u2032\uff07\u00b4`"
)
PLAIN = "write the plain letter or digit"
MINUS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"
WIDE = {"\uff1d": "=", "\uff3b": "[", "\uff3d": "]", "\uff0c": ",", "\uff1a": ":", "\uff03": "#"}
BARE_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "enabled"), "write true"),
    **dict.fromkeys(("false", "no", "off", "disabled"), "write false"),
    **dict.fromkeys(("none", "null", "nil", "undefined"), "delete the line to leave the key out"),
}


class Slip(NamedTuple):
    line: int
    what: str


def explain(text: str, line: int, column: int, parser_message: str, known: Collection[str]) -> Slip:
    """The slip behind the parser's error at ``line`` and ``column``, both from 1;
    ``parser_message`` is its message, ``known`` are the words that may be repeated.
    """
    if "\r" in text.replace("\r\n", ""):
        at = text.replace("\r\n", "\n").partition("\r")[0].count("\n") + 1
        return Slip(at, "a carriage return without a line feed; save the file with Unix line ends")
    lines = text.replace("\r\n", "\n").split("\n")
    here = lines[line - 1] if line <= len(lines) else ""
    if odd := _odd_sign(here, column):
        return Slip(line, odd)
    if re.match(r"Unclosed|Unterminated|Expected \"'", parser_message):
        return _not_closed(lines, line, known)
    if begun := re.match(r"(<{7}|={7}|>{7})( |$)", here):
        return Slip(line, f"{begun[1]} is left over from a merge; keep one of the two sides")
    if here.lstrip().startswith("["):
        return _header(lines, line, parser_message, known)
    return Slip(line, _statement(lines, line, parser_message, known))


def odd_sign(text: str) -> str | None:
    """A sign in ``text`` that cannot be seen, or not be told from another: how to mend it."""
    for column, one in enumerate(text, 1):
        if mend := _mend(one):
            return f"{_called(one)} at place {column}; {mend}"
    if (at := _foreign(text)) is not None:
        return f"{_called(text[at])} at place {at + 1}; {PLAIN}"
    return None


def invisible(text: str) -> str | None:
    """An invisible character in a text that is in order otherwise."""
    for column, one in enumerate(text, 1):
        if _unseen(one):
            return f"{_called(one)} at place {column}; {_mend(one)}"
    return None


# Signs


def _foreign(text: str) -> int | None:
    """Where a letter or digit of another alphabet stands within a plain word, as if it were one of
    its own."""
    pattern = r"(?<=[A-Za-z0-9_])[^\W\x00-\x7f]|[^\W\x00-\x7f](?=[A-Za-z0-9_])"
    for found in re.finditer(pattern, text):
        if not unicodedata.name(found[0], "").startswith("LATIN"):
            return found.start()
    return None


def _odd_sign(here: str, column: int) -> str | None:
    """The sign where the parser stopped, or the first one of the line outside its texts."""
    at = here[column - 1 : column]
    if mend := _mend(at):
        return f"{_called(at)} in column {column}; {mend}"
    for place, one in enumerate(re.split(r"\s#", here)[0], 1):
        if (mend := _mend(one)) and place <= column:
            return f"{_called(one)} in column {place}; {mend}"
    return None


def _mend(one: str) -> str | None:
    if not one or (" " <= one <= "~" and one != "`") or one == "\t":
        return None
    if one in QUOTES:
        return 'write the plain quotation mark "'
    if one in MINUS:
        return "write the plain character -"
    if one in WIDE:
        return f"write the plain character {WIDE[one]}"
    if unicodedata.category(one) in ("Zs", "Zl", "Zp"):
        return "write a plain space, or delete it"
    if _unseen(one):
        return "delete it"
    return None


def _unseen(one: str) -> bool:
    return unicodedata.category(one) in ("Cf", "Cc", "Zl", "Zp", "Co", "Cs") or (
        one != " " and unicodedata.category(one) == "Zs"
    )


def _called(one: str) -> str:
    name = unicodedata.name(one, "")
    return f"U+{ord(one):04X}{f' ({name.lower()})' if name else ''}"


# Tables


def _header(lines: list[str], line: int, parser_message: str, known: Collection[str]) -> Slip:
    here = lines[line - 1].strip()
    double = here.startswith("[[")
    match = re.match(r"\[{1,2}([^\[\]#]*)(\]{0,2})\s*(.*)", here)
    inner, closing, rest = match.groups() if match else ("", "", "")
    parts = [one.strip() for one in inner.split(".")]
    if len(closing) != 1 + double:
        opening, needed = ("[[", "]]") if double else ("[", "]")
        return Slip(line, f"the table's name begins with {opening}; end it with {needed}")
    if rest and not rest.startswith("#"):
        return Slip(line, "something follows the name of a table; begin a new line after it")
    path = _name(parts, known)
    if not all(re.fullmatch(r"[A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*'", part) for part in parts):
        return Slip(line, "a table's name is words with a . between them, such as [stream.capture]")
    for number, other in enumerate(lines[: line - 1], 1):
        if found := re.match(r"\s*(\[{1,2})([^\[\]#]+)\]", other):
            same = [one.strip() for one in found[2].split(".")] == parts
            if same and (found[1] == "[[") != double:
                wanted = f"[[{path}]]"
                if parts[-1] not in ("stream", "sink"):
                    wanted = f"[{path}]"
                return Slip(
                    line if wanted.startswith("[[") != double else number,
                    f"[{path}] and [[{path}]] are both there, in lines {number} and {line}; "
                    f"write {wanted} each time",
                )
    first = _first(lines, line, parts)
    if re.match(r"Cannot", parser_message) and first:
        again = "" if "stream" not in parts else ", or begin another [[stream]] before it"
        return Slip(
            line,
            f"the table [{path}] is there already, from line {first} on; "
            f"put the keys of both into one{again}",
        )
    if re.match(r"Cannot", parser_message):
        inside = next(
            (
                one
                for one, other in enumerate(lines[: line - 1], 1)
                if re.match(rf"\s*\[+\s*{re.escape('.'.join(parts))}\s*\.", other)
            ),
            None,
        )
        if double and inside:
            mend = f"a table of [[{path}]] stands above it, in line {inside}; move [[{path}]] up"
            return Slip(line, mend)
        return Slip(line, f"the table [{path}] is there already, as a key; keep one of the two")
    return Slip(line, "no name of a table; expected one such as [stream.capture]")


def _first(lines: list[str], line: int, parts: list[str]) -> int | None:
    """Where the same table began, in the same element of [[stream]]."""
    for number in range(line - 1, 0, -1):
        found = re.match(r"\s*\[{1,2}([^\[\]#]+)\]", lines[number - 1])
        if found and [one.strip() for one in found[1].split(".")] == parts:
            return number
    return None


# Keys and values


def _statement(lines: list[str], line: int, parser_message: str, known: Collection[str]) -> str:
    here = lines[line - 1].strip()
    if here.startswith((";", "//", "--", "/*")):
        return "a comment begins with #"
    if here.startswith(("{", "}")):
        return 'this looks like JSON; write TOML, such as device = "hw:0"'
    key, equals, value = here.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or ":" in key:
        return _no_equals(here, known)
    if not key:
        return "a key is missing before ="
    if (at := _foreign(key)) is not None:
        return f"{_called(key[at])} at place {at + 1} of the key; {PLAIN}"
    if not re.fullmatch(r"[A-Za-z0-9_.\-\s]+|(\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]|\.|\s)+", key):
        return "a key is letters, digits, _ and -; the text before = is not one"
    if re.search(r"[A-Za-z0-9_-]\s+[A-Za-z0-9_-]", key):
        return "a key is one word; join the words before = by _ or delete what is too much"
    named = _name([one.strip() for one in key.split(".")], known)
    if parser_message.startswith("Cannot"):
        return _twice(lines, line, key, named)
    if named == "mode" and re.match("0?[0-7]{3}$", value.partition("#")[0].strip()):
        return 'a mode stands in quotation marks; write mode = "0640"'
    return _value(value, parser_message, named)


def _no_equals(here: str, known: Collection[str]) -> str:
    word = re.match(r"[\"']?([A-Za-z0-9_-]+)[\"']?\s*(:=|:|=>|->)?", here)
    if word is None:
        return 'no statement; expected a line such as device = "hw:0"'
    named = _name([word[1]], known)
    if word[2]:
        return f"a value follows after = and not after {word[2]}; write {named} = …"
    if word.end() == len(here):
        return f"{named} has no value; write {named} = and its value"
    return f"= is missing between key and value; write {named} = …"


def _twice(lines: list[str], line: int, key: str, named: str) -> str:
    for number in range(line - 1, 0, -1):
        other = lines[number - 1].strip()
        if other.startswith("["):
            break
        if other.partition("=")[0].strip() == key:
            return f"{named} is there already, in line {number}; delete one of the two"
    return f"{named} is there already; delete one of the two"


def _value(value: str, parser_message: str, named: str) -> str:
    bare = re.split(r"\s#|^#", value)[0].strip()
    if not bare:
        return f"the value of {named} is missing"
    if mend := BARE_WORDS.get(bare.rstrip(",;").lower()):
        return f"a word without quotation marks is not a value; {mend}"
    if bare[0] in "\"'":
        return _quoted(bare, parser_message)
    if bare[-1] in ",;":
        return f"nothing follows a value; delete the {bare[-1]} at the end of the line"
    if re.fullmatch(r"[+-]?\d+,\d+", bare):
        return "a number has a decimal point, not a comma, and nothing between its thousands"
    if re.fullmatch(r"[+-]?0\d+(\.\d+)?", bare):
        return "a number does not begin with 0; delete the zero"
    if re.fullmatch(r"[+-]?[\d.,_]+\s*[%A-Za-z\u00b5\u03bc/]+", bare):
        return "write the number without a unit; the key names it"
    if re.fullmatch(r"[+-]?\d[\d\s.,'_]*", bare):
        return "no number; write its digits without anything between them"
    if bare.startswith(("[", "{")):
        end = "]" if bare.startswith("[") else "}"
        return f"what begins with {bare[0]} has commas between its values and {end} at its end"
    if bare.startswith("="):
        return f"one = is enough; write {named} = …"
    return f'put the text in quotation marks; write {named} = "…"'


def _quoted(value: str, parser_message: str) -> str:
    mark = value[0]
    end = value.find(mark, 1)
    if (
        "\\" in value
        and mark == '"'
        and re.search("escape|hex|Unescaped|unicode", parser_message, re.I)
    ):
        return (
            "a \\ in quotation marks begins an escape; write '…' instead of \"…\", or \\\\ for each"
        )
    if end < 0:
        return f"the quotation mark {mark} at the end of the text is missing"
    rest = value[end + 1 :].strip()
    if rest[:1] in (",", ";"):
        return f"nothing follows a value; delete the {rest[0]} at the end of the line"
    if rest.startswith(("//", "--", ";")):
        return "a comment begins with #"
    if parser_message.startswith("Illegal character"):
        return "the text contains an invisible character; delete it"
    return "something follows after the closing quotation mark; delete it, or begin a new line"


def _not_closed(lines: list[str], line: int, known: Collection[str]) -> Slip:
    """The parser went on to the end of the file, or to where it could not go on."""
    for number in range(min(line, len(lines)), 0, -1):
        other = lines[number - 1].strip()
        key, equals, value = other.partition("=")
        value = value.strip()
        if not equals or key.lstrip().startswith(("[", "#")):
            continue
        named = _name([one.strip() for one in key.strip().split(".")], known)
        for opening, closing in (
            ('"""', '"""'),
            ("'''", "'''"),
            ("'", "'"),
            ("[", "]"),
            ("{", "}"),
        ):
            if value.startswith(opening):
                return Slip(
                    number,
                    f"the value of {named} begins with {opening} and has no {closing} at its end, "
                    "or no comma between its parts",
                )
    return Slip(line, "something that was begun has no end; look for a quotation mark or bracket")


def _name(parts: list[str], known: Collection[str]) -> str:
    """A key in words: itself if all of it are words of ours."""
    return ".".join(parts) if all(part in known for part in parts) else "this key"
