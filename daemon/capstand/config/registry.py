"""The registry: types of sinks, of sources and of processors, each found by its name.

A type is one description (``SinkType``, ``SourceType``, ``ProcessorType``): its configuration, how
it is made of that, whether it is live, what it has for itself alone, its page of documentation.
Nothing else names it.

One that comes with capstand is ``TYPE`` in the module of its name in a folder, with _ where the
name has -. One that another distribution brings is the entry point of its name in a group. Either
is loaded by its name when a configuration asks for it, so this room stands below those that it
finds, and other distributions are looked at only for a name that the folder does not have: a start
costs nothing.

What others bring may be missing half of what it needs, or be no description at all: then the
configuration that names it is refused (``Unusable``), and says which distribution is to be mended.

Thread: any. The idea of entry points: packaging.python.org, "Entry points specification".
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, get_type_hints

from capstand.audio.block import Shape
from capstand.config import trial
from capstand.config.decode import Named, Tagged, Unusable, is_ours
from capstand.config.naming import SHAPES, fault
from capstand.config.rules import Choice
from capstand.text import clean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from capstand.config.schema import CaptureConfig, SinkConfig, StreamConfig

NAME = r"[a-z][a-z0-9_-]{0,31}"
LONGEST_REASON = 200


class Resource(NamedTuple):
    """What only one sink can have at a time, in its stream or ``anywhere``: one that takes it over
    waits until the other has closed. ``key`` of the sink's table and ``taken`` are for a
    configuration that gives it to two; ``taken`` gets the number of the first. Where two names
    alone keep places apart, there is nothing to say."""

    where: tuple[object, ...]
    key: str = ""
    taken: Callable[[int], str] | None = None
    anywhere: bool = False


class SinkContext(NamedTuple):
    """Where a sink is to work: its stream, the directory for what has to be kept, the real-time
    priority of its threads, the directory for sockets."""

    stream: str
    capture: "CaptureConfig"
    state: Path
    priority: int
    runtime: Path


def _nothing(*_: Any) -> tuple[()]:
    return ()


def _nowhere(_: Any) -> None:
    return None


class SinkType(NamedTuple):
    """Everything that is to know of a type of sink.

    ``schema``: a named tuple, the table [[stream.sink]]. It has the keys ``type`` and ``name``,
    where the sink is not live also ``queue_ms``, and there it may have a ``spool``.
    ``page``: where it is explained, a file in docs/ or an address.
    ``live``: only the present is of use to it; it reads the ring in a process of its own.
    ``make``: of a value of ``schema`` and its SinkContext a ``sinks.sink.Sink``; where it is live
    a ``sinks.live.SinkFactory`` of one, because the daemon itself does not load it.
    ``resources``: what only one such sink can have at a time.
    ``problems``: what is wrong between it and the rest of its Stream, by the key of its table;
    "capture.…" is one of the stream's.
    ``loads``: modules of capstand that are loaded before a process that needs them is forked.
    """

    schema: Any
    page: str
    live: bool
    make: Callable[[Any, SinkContext], Any]
    resources: Callable[[Any], Iterable[Resource]] = _nothing
    problems: Callable[[Any, "StreamConfig"], Iterable[tuple[str, str]]] = _nothing
    loads: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """Why it cannot be used."""
        needed = {"type", "name"} if self.live else {"type", "name", "queue_ms"}
        if missing := needed - set(getattr(self.schema, "_fields", ())):
            return f"its schema has no key {min(missing)}"
        return _unreadable(self.schema)

    def held(self, sink: "SinkConfig") -> list[Resource]:
        """The places of a sink, told from those of other types; none where that fails."""
        try:
            return [
                resource._replace(where=(sink.type, *resource.where))
                for resource in self.resources(sink)
            ]
        except Exception:
            if is_ours(self.make):
                raise
            return []

    def faults_in(self, sink: "SinkConfig", stream: "StreamConfig") -> list[tuple[str, str]]:
        """What is wrong with a sink in its stream; so is a type whose own code fails."""

        def asked() -> Iterable[tuple[str, str]]:
            list(self.resources(sink))
            return self.problems(sink, stream)

        return _told(self, "type", asked)


class SourceType(NamedTuple):
    """Everything that is to know of a type of source.

    A device that is called as a type that comes with capstand is of that type; of another
    distribution's is one that begins with its name and a colon, such as "tape:left".
    ``schema``: a named tuple, the table [stream.capture.NAME]; None where there is none.
    ``page``: where it is explained, a file in docs/ or an address.
    ``make``: of the Capture a ``capture.source.Source``; ``capture.source`` has the table's values.
    ``alone``: only one stream can have a device of it.
    ``problems``: what is wrong with a Capture, by key.
    ``rest``: every device is of this type that is of no other.
    ``simulated``: the sound comes from no card.
    ``resource``: what else only one stream can have: the key in [stream.capture] and its value.
    ``entrance``: the path of the socket at which programs bring the sound, if that is its way.
    ``loads``: modules of capstand that are loaded before a process that needs them is forked.
    """

    schema: Any
    page: str
    make: Callable[["CaptureConfig"], Any]
    alone: bool = True
    problems: Callable[["CaptureConfig"], Iterable[tuple[str, str]]] = _nothing
    rest: bool = False
    simulated: bool = False
    resource: Callable[["CaptureConfig"], tuple[str, str] | None] = _nowhere
    entrance: Callable[["CaptureConfig"], Path | None] = _nowhere
    loads: tuple[str, ...] = ()

    @property
    def fault(self) -> str | None:
        """Why it cannot be used."""
        if self.schema is None:
            return None
        if not hasattr(self.schema, "_field_defaults"):
            return "its schema is not a named tuple"
        return _unreadable(self.schema)

    def faults_in(self, capture: "CaptureConfig") -> list[tuple[str, str]]:
        """What is wrong with a Capture; so is a type whose own code fails."""
        return _told(self, "device", lambda: self.problems(capture))


def _same(settings: Any, shape: Shape) -> Shape:
    return shape


def _alone(_: Any) -> Mapping[str, str]:
    return {}


class ProcessorType(NamedTuple):
    """Everything that is to know of a type of processor.

    ``schema``: a named tuple, the table [[stream.process]], with the key ``type``.
    ``page``: where it is explained, a file in docs/ or an address.
    ``make``: of a value of ``schema`` and the Shape of what comes in a
    ``processing.processor.Processor``; what computes is imported there, since a configuration is
    also checked where nothing is processed.
    ``out``: the Shape of what comes out.
    ``problems``: what is wrong with it where such a Shape comes in, by the key of its table.
    ``extra``: which of capstand's optional dependencies it needs.
    ``sidechains``: the other streams that it listens to, by the keys of its table; ``make`` gets a
    ``processing.sidechain.Sidechain`` of each as further arguments.
    ``hosted``: it can neither hang nor end a process, so it may work in that of a live sink, where
    nobody looks after it.
    """

    schema: Any
    page: str
    make: Callable[..., Any]
    out: Callable[[Any, Shape], Shape] = _same
    problems: Callable[[Any, Shape], Iterable[tuple[str, str]]] = _nothing
    extra: str = ""
    sidechains: Callable[[Any], Mapping[str, str]] = _alone
    hosted: bool = False

    @property
    def fault(self) -> str | None:
        """Why it cannot be used."""
        if "type" not in getattr(self.schema, "_fields", ()):
            return "its schema has no key type"
        return _unreadable(self.schema)

    def faults_in(self, settings: Any, shape: Shape) -> list[tuple[str, str]]:
        """What is wrong with one where such a Shape comes in; so is a type whose code fails."""

        def asked() -> Iterable[tuple[str, str]]:
            found = list(self.problems(settings, shape))
            self.out(settings, shape)
            dict(self.sidechains(settings))
            return found

        return _told(self, "type", asked)


def describe_failure(kind: SinkType | SourceType | ProcessorType, error: Exception) -> str:
    """What to do about something that the code of a type raised; a bug of ours is raised again."""
    if is_ours(kind.make):
        raise error
    module = kind.make.__module__
    return f"its type failed ({_reason(error)}); fix or uninstall what brings {module}"


def _told(
    kind: SinkType | SourceType | ProcessorType,
    key: str,
    asked: Callable[[], Iterable[tuple[str, str]]],
) -> list[tuple[str, str]]:
    try:
        return [(str(at), str(what)) for at, what in asked()]
    except Exception as error:  # noqa: BLE001
        return [(key, describe_failure(kind, error))]


def _unreadable(schema: Any) -> str | None:
    try:
        get_type_hints(schema, include_extras=True)
    except Exception as error:  # noqa: BLE001  what others bring may raise anything
        return f"its schema cannot be read: {_reason(error)}"
    return None


def _reason(error: BaseException) -> str:
    return clean.line(f"{type(error).__name__}: {error}", LONGEST_REASON)


class Described(Protocol):
    """What a registry holds."""

    @property
    def schema(self) -> Any: ...
    @property
    def fault(self) -> str | None: ...


T = TypeVar("T", bound=Described)


class Registry(Generic[T]):
    """All types of a ``kind``: those in ``folder``, a package, and those in the entry points of
    ``group``."""

    def __init__(self, kind: type[T], folder: str, group: str) -> None:
        self.group = group
        self._kind = kind
        self._folder = folder
        self._ours: dict[str, T] = {}
        self._found: dict[str, T] = {}
        self._points: list[EntryPoint] | None = None

    def rescan(self) -> None:
        """What has been installed since is looked at when next a name is not built in."""
        self._points = None

    def find(self, name: str) -> T | None:
        """None where nobody brings it. Raises Unusable."""
        if name not in self._found and re.fullmatch(NAME, name):
            found = self._built_in(name) or self._foreign(name)
            if found is None:
                return None
            self._found[name] = found
        return self._found.get(name)

    def __getitem__(self, name: str) -> T:
        """One that a configuration has been read with."""
        found = self.find(name)
        assert found is not None, name
        return found

    def built_in(self) -> dict[str, T]:
        if not self._ours:
            package = importlib.import_module(self._folder)
            (folder,) = package.__path__  # pkgutil would load inspect, a quarter of all this
            names = sorted(one.stem.replace("_", "-") for one in Path(folder).glob("[a-z]*.py"))
            self._ours = {name: self[name] for name in names}
        return self._ours

    def foreign_names(self) -> list[str]:
        try:
            names = {
                entry_point.name
                for entry_point in self._entry_points()
                if re.fullmatch(NAME, entry_point.name)
            }
        except Unusable:
            return []
        return sorted(names - self.built_in().keys())

    def _built_in(self, name: str) -> T | None:
        module = f"{self._folder}.{name.replace('-', '_')}"
        if "_" in name or importlib.util.find_spec(module) is None:
            return None
        found: T = importlib.import_module(module).TYPE
        return found

    def _foreign(self, name: str) -> T | None:
        points = [entry_point for entry_point in self._entry_points() if entry_point.name == name]
        if not points:
            return None
        if len(points) > 1:
            brought = " and ".join(sorted(map(_origin, points)))
            raise Unusable(f"is brought by {brought}; uninstall all but one of them")
        (point,) = points
        mend = f"fix or uninstall {_origin(point)}"
        if trouble := trial.trouble_with(point.module):
            raise Unusable(f"cannot be loaded ({trouble}); {mend}")
        try:
            found = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise Unusable(f"cannot be loaded ({_reason(error)}); {mend}") from None
        wanted = f"{self._kind.__module__}.{self._kind.__name__}"
        if not isinstance(found, self._kind):
            what = f"{clean.line(point.value, 100)} is a {type(found).__name__}"
            raise Unusable(f"cannot be used: {what}, expected a {wanted}; {mend}")
        if fault := found.fault:
            raise Unusable(f"cannot be used: {fault}, expected a {wanted}; {mend}")
        return found

    def _entry_points(self) -> list["EntryPoint"]:
        if self._points is None:
            self._points = self._scan()
        return self._points

    def _scan(self) -> list["EntryPoint"]:
        from importlib import metadata  # takes longer to load than all of this

        try:
            return list(metadata.entry_points(group=self.group))
        except Exception as error:  # noqa: BLE001  a file that anybody installed
            raise Unusable(
                f"is not built in, and what is installed cannot be read ({_reason(error)}); "
                "fix the Python environment, or take another type"
            ) from None


def _origin(point: "EntryPoint") -> str:
    """The distribution that brings it."""
    try:
        choices = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    except Exception:  # noqa: BLE001  its metadata are what others wrote
        choices = point.value
    return clean.line(choices, 100)


class Sources(Registry[SourceType]):
    """The types of sources, found by the names of devices."""

    def of(self, device: str | tuple[str, ...]) -> SourceType:
        """Other distributions are looked at for a name only that ALSA does not take. Raises
        Unusable."""
        name = device if isinstance(device, str) else ""
        word, colon, _ = name.partition(":")
        built_in = self.built_in()
        if not colon and word in built_in:
            return built_in[word]
        if colon and word not in built_in and fault(name) and f"{word.lower()}:" not in SHAPES:
            found = self.find(word)
            if found is not None:
                return found
        return next(one for one in built_in.values() if one.rest)

    def name_of(self, table: object) -> str:
        """The name of the type that a table belongs to."""
        kinds = self.built_in() | self._found
        return next(name for name, one in kinds.items() if type(table) is one.schema)

    def meant(self, device: str) -> str:
        """The near name of a type, as a question."""
        import difflib  # only where something is wrong

        word, colon, rest = device.partition(":")
        ours = [name for name, one in self.built_in().items() if not one.rest]
        if found := difflib.get_close_matches(word, ours, 1, 0.7):
            return f'; did you mean "{found[0]}"?'
        near = difflib.get_close_matches(word, self.foreign_names() if colon else (), 1, 0.6)
        return f'; did you mean "{near[0]}:{rest}"?' if near else ""

    @property
    def entered(self) -> str:
        """A device whose sound programs bring."""
        return next(name for name, one in self.built_in().items() if one.entrance is not _nowhere)

    @property
    def simulated(self) -> str:
        """A device that needs no hardware."""
        return next(name for name, one in self.built_in().items() if one.simulated)


SINKS = Registry(SinkType, "capstand.sinks.types", "capstand.sinks")
SOURCES = Sources(SourceType, "capstand.capture.types", "capstand.sources")
PROCESSORS = Registry(ProcessorType, "capstand.processing.types", "capstand.processors")


class OfSinks(Tagged):
    """A table of one of the types of sinks; its ``type`` says which."""

    def __init__(self) -> None:
        super().__init__("type", {})

    @property
    def choices(self) -> tuple[str, ...]:
        """What stays on this machine first, what others bring last."""
        built_in = SINKS.built_in()
        ours = sorted(built_in, key=lambda name: (built_in[name].live, name))
        return (*ours, *SINKS.foreign_names())

    def known(self) -> Iterable[Any]:
        return [one.schema for one in SINKS.built_in().values()]

    def find(self, word: object) -> Any:
        found = SINKS.find(word) if isinstance(word, str) else None
        return found.schema if found else Choice(self.choices).check(word)


class OfSources(Named):
    """The table of one of the types of sources."""

    def known(self) -> dict[str, Any]:
        built_in = SOURCES.built_in()
        return {name: one.schema for name, one in built_in.items() if one.schema is not None}

    def find(self, word: str) -> Any:
        found = SOURCES.find(word)
        return found.schema if found else None


class OfProcessors(Tagged):
    """A table of one of the types of processors; its ``type`` says which."""

    def __init__(self) -> None:
        super().__init__("type", {})

    @property
    def choices(self) -> tuple[str, ...]:
        return (*PROCESSORS.built_in(), *PROCESSORS.foreign_names())

    def known(self) -> Iterable[Any]:
        return [one.schema for one in PROCESSORS.built_in().values()]

    def find(self, word: object) -> Any:
        found = PROCESSORS.find(word) if isinstance(word, str) else None
        return found.schema if found else Choice(self.choices).check(word)
