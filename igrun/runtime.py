"""A whole run, top to bottom: find the image, open it, bind the operators, load, attach, read, show.

with Gadget.open("trace_open").run(failed=True) as run:
    for batch in run: ...
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from igrun import plugins
from igrun.books import Books, loss_record, losses, uncountable_record
from igrun.config import DEFAULT_SEARCH, IMAGES, Settings
from igrun.dataclass import dataclass, field, replace
from igrun.display import Display, Hangup, Held, dropped
from igrun.errors import GadgetError, ParamError
from igrun.metadata import BOOL, TEXT, UINT, GadgetMetadata, Param
from igrun.operators import Given, Step
from igrun.outputs import PARQUET_SIZE, PARQUET_TIME
from igrun.record import TICK, And, Batch, Batches, Facts, Kind, Lost, Predicate, Reason, Sources, Table, frame

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from igrun.events import Events
    from igrun.host import Host
    from igrun.image import GadgetImage
    from igrun.load import LoadedProgram
    from igrun.oci.copy import Progress
    from igrun.outputs import Writer
    from igrun.program import Program
    from igrun.recording import Played, Playing, Recorder, Recording
    from igrun.views import Event

HOST = Param("host", BOOL, "false", "Show data from both the host and containers", group="operator.LocalManager")
OUTPUT = Param("output", TEXT, "", "How to print: a mode, or source:mode,...", alias="o", group="operator.cli")
FIELDS = Param("fields", TEXT, "", "Columns to print: f1,f2 or +f,-f, or source:f1;source2:f2", group="operator.cli")
RING = Param(
    "ring-size",
    UINT,
    "8192",
    "KiB that a ring buffer has at least, less by default where memory is short; 0: as the gadget declares it",
    group="runtime",
)
BACKLOG = Param(
    "backlog-size",
    UINT,
    "65536",
    "KiB of records that may wait beside the buffers while the reader of the output is slow; 0: none",
    group="runtime",
)
RECORD = Param(
    "record", TEXT, "", "Write every record that is read into this file, for ig replay", group="runtime", hint="FILE"
)
LOSS_RECORDS = Param(
    "loss-records",
    BOOL,
    "false",
    'With -o json: a line {"@lost": ...} among the records for those that were lost',
    group="runtime",
)
FAIL_ON_LOSS = Param("fail-on-loss", BOOL, "false", "End with an error if records were lost", group="runtime")
OF_IMAGES = frozenset(param.key for param in IMAGES)
NO_VALUES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Gadget:
    """An image opened for one run: what it prints and which flags it has. Nothing here needs root or a kernel.

    values:   param key -> text, what the caller set over gadget.yaml's `paramDefaults`
    plug_ins: dotted names of third-party operators
    """

    image: GadgetImage
    metadata: GadgetMetadata
    program: Program | None
    values: Mapping[str, str] = field(default_factory=dict)
    plug_ins: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        name: str,
        values: Mapping[str, str] = NO_VALUES,
        *,
        architecture: str = "",
        search: Sequence[str] = DEFAULT_SEARCH,
        of_user: bool = False,
        plug_ins: tuple[str, ...] = (),
        settings: Settings | None = None,
        progress: Progress | None = None,
        looking: bool = False,
        **image: object,
    ) -> Self:
        """Find the image of that name, pull it if need be, verify it and open it (see `lookup.find`).

        architecture: "" for this machine's
        settings:     what a config file says about images and registries; None: nothing
        progress:     is told what a pull transfers
        looking:      it is not going to run, so its signature does not matter
        image:        how to come by it: pull="never", verify_image=False, public_keys=[PEM], allowed_gadgets=[...],
                      disallow_pulling=True, authfile=..., insecure_registries=[...], and so on as `ig run` has them
        """
        from igrun import lookup
        from igrun.host import GOARCH

        machine = os.uname().machine
        architecture = architecture or GOARCH.get(machine, machine)
        given = as_values(image, OF_IMAGES)
        for key, text in given.items():
            if key not in OF_IMAGES:
                raise ParamError(
                    key, text, f'unknown argument "{key}"', hint=f"there are: {', '.join(sorted(OF_IMAGES))}"
                )
        values = {**values, **given}
        policy = lookup.Policy(values, settings or Settings(), progress, looking)
        return cls.of(lookup.find(name, architecture, search=search, of_user=of_user, policy=policy), values, plug_ins)

    @classmethod
    def of(cls, image: GadgetImage, values: Mapping[str, str] = NO_VALUES, plug_ins: tuple[str, ...] = ()) -> Self:
        """Open an image. `annotate` and custom params among the values shape the sources."""
        from igrun.program import Program

        metadata = image.metadata.customized(values)
        program = Program.open(image.ebpf, metadata, remember=True) if image.ebpf else None
        return cls(image, metadata, program, {**metadata.default_values, **values}, plug_ins)

    @cached_property
    def operators(self) -> tuple[Any, ...]:
        """The operator modules, in the order they bind."""
        return plugins.operators(self.plug_ins)

    @property
    def own_params(self) -> tuple[Param[Any], ...]:
        """The flags that come from the image."""
        return (*(self.program.params if self.program else ()), *self.metadata.custom_params)

    @cached_property
    def params(self) -> tuple[Param[Any], ...]:
        """Every flag of this gadget: its own, then those of the operators and outputs that its sources allow."""
        sources = self.program.sources if self.program else {}
        shared = [param for operator in self.operators for param in operator.PARAMS]
        ring = (RING, BACKLOG) if self.program and self.program.tracers else ()
        losses = (LOSS_RECORDS, FAIL_ON_LOSS)
        return (
            *self.own_params,
            *offered(shared, sources),
            HOST,
            OUTPUT,
            FIELDS,
            PARQUET_SIZE,
            PARQUET_TIME,
            RECORD,
            *ring,
            *losses,
        )

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """What the operators do in this run, in stage order. ParamError: a param has a wrong value."""
        self._refuse_unknown()
        steps: list[Step] = []
        sources: Sources = self.program.sources if self.program else {}
        for operator in self.operators:
            for step in operator.bind(Given(self.metadata, self.program, sources, self.values, env=os.environ)):
                sources = step.sources
                steps.append(step)
        self.metadata.check_annotated(sources)
        return tuple(steps)

    @property
    def sources(self) -> Sources:
        """What it prints, as the last step leaves it."""
        if self.steps:
            return self.steps[-1].sources
        return self.program.sources if self.program else {}

    def run(
        self, *, timeout_s: float = 0, machine: Host | None = None, display: Display | None = None, **params: object
    ) -> Run:
        """Load it into the kernel and attach it. Close the Run, or use it as a context manager.

        timeout_s: seconds until it stops by itself, 0: never
        machine:   facts about where it runs; None: they are found
        display:   where `Run.show` will print
        params:    by key, `_` for `-`; values as text, or bool and numbers
        """
        gadget = self.with_values(as_values(params, self.keys)) if params else self
        return Run(gadget, timeout_s=timeout_s, machine=machine, display=display)

    def with_values(self, values: Mapping[str, str]) -> Gadget:
        """The same gadget with these values over the ones it has, opened again only where they change what it is."""
        merged = {**self.values, **values}
        if self.image.metadata.customized(merged) == self.metadata:
            return replace(self, values=merged)
        return Gadget.of(self.image, merged, self.plug_ins)

    @property
    def keys(self) -> set[str]:
        """Every key that a value may have."""
        sources = self.program.sources if self.program else {}
        return {key for param in self.params for key in keys(param, sources)} | OF_IMAGES

    def _refuse_unknown(self) -> None:
        known = self.keys
        for key in self.values:
            # an image may have defaults for operators that are not here
            if key not in known and key not in self.metadata.default_values:
                from difflib import get_close_matches

                near = get_close_matches(key, known, 1)
                raise ParamError(
                    key,
                    self.values[key],
                    f'unknown param "{key}" of gadget {self.metadata.name}',
                    hint=f"did you mean {near[0]}?" if near else "",
                )


def offered(params: list[Param[Any]], sources: Sources) -> list[Param[Any]]:
    """Those of the params that make sense for these sources: one tagged `table` needs a source that is one."""
    tables = any(source.kind is Kind.TABLE for source in sources.values())
    return [param for param in params if tables or "table" not in param.tags]


def keys(param: Param[Any], sources: Sources) -> list[str]:
    """The keys a param is set by: a per-source one as `<key>.<source>`, and alone where there is one source."""
    if not param.per_source:
        return [param.key, param.alternative] if param.alternative else [param.key]
    each = [f"{param.key}.{name}" for name, source in sources.items() if source.referenced]
    return [param.key, *each] if len(each) == 1 else each


def ring_bytes(text: str, param: Param[int] = RING) -> int:
    """What `--ring-size` says, in bytes. ParamError: it is no number, or too large."""
    size = param.parse(text)
    if size > 1 << 20:
        raise ParamError(param.key, text, f'invalid value "{text}" as "{param.key}": at most {1 << 20} KiB')
    return size << 10


def as_values(params: Mapping[str, object], known: Iterable[str]) -> dict[str, str]:
    """Python keyword arguments -> param key -> text. An argument has `_` where its key has another sign."""
    by_name = {key.replace("-", "_").replace(".", "_"): key for key in known}
    return {by_name.get(name, name): as_text(value) for name, value in params.items()}


def as_text(value: object) -> str:
    """A Python value as a flag has it."""
    if isinstance(value, list | tuple):
        return ",".join(as_text(one).replace(",", "\\,") for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(name: str, *, timeout_s: float = 0, **params: object) -> Run:
    """Run the gadget of that name on this machine: load it, attach it, and give its batches.

    params: those of `Gadget.run`, and how to come by its image (see `Gadget.open`): pull="never", verify_image=False
    """
    of_image = {key.replace("-", "_") for key in OF_IMAGES}
    image = {key: value for key, value in params.items() if key in of_image}
    others = {key: value for key, value in params.items() if key not in of_image}
    gadget = Gadget.open(name, as_values(image, OF_IMAGES))
    return gadget.with_values(as_values(others, gadget.keys)).run(timeout_s=timeout_s)


class Run:
    """A gadget in the kernel, attached and read. Iterate over its batches, or `show` them.

    books:     what became of every record
    missed:    runs of its programs that the kernel left out, because another was running on that CPU: it cannot be
               known how many of them would have made a record (known at the end)
    kernel_btf: the BTF that its programs were resolved against, and where else it was looked for
    """

    def __init__(
        self, gadget: Gadget, *, timeout_s: float = 0, machine: Host | None = None, display: Display | None = None
    ) -> None:
        from igrun import attach, engine, kernel_btf
        from igrun.events import Events
        from igrun.host import HOST_TARGET, Host
        from igrun.load import affordable, load
        from igrun.program import INTERFACE, Plan
        from igrun.ringbuf import sees_nothing

        if gadget.program is None:
            raise ParamError("image", gadget.metadata.name, "this image has no eBPF program to run")
        self.gadget = gadget
        self.sources = gadget.sources
        self.books = Books(self.sources)
        self.missed = 0
        self._loss_records: frozenset[str] = frozenset()
        self._balanced = False
        self._display = display or Display(dropped)
        self._engine = engine.open()
        self._recorder: Recorder | None = None

        host = self._host = machine or Host.current()
        with ExitStack() as stack:
            plan = Plan(gadget.program, host, self.sources, stack, gadget.values)
            plan.families = plugins.families(gadget.plug_ins)
            plan.ring_bytes = ring_bytes(gadget.values.get(RING.key, RING.default))
            if RING.key not in gadget.values:
                plan.ring_bytes = min(plan.ring_bytes, affordable(host.root, len(gadget.program.tracers)))
            plan.backlog_bytes = ring_bytes(gadget.values.get(BACKLOG.key, BACKLOG.default), BACKLOG)
            plan.constants.update(gadget.program.constants(gadget.values))
            image = gadget.image
            self.kernel_btf = kernel_btf.find(host, gadget.program, stack=stack, btfs=image.btfs, values=gadget.values)
            plan.kernel_btf, plan.missing_btf = self.kernel_btf.path, self.kernel_btf.missing
            for step in gadget.steps:
                if step.prepare:
                    step.prepare(plan)
            if display and display.fd is not None and display.is_pipe():
                plan.readers.append(Hangup(display.fd, self.stop))
            loaded = load(plan)
            self._loaded: LoadedProgram | Played = loaded
            attach.follow(loaded)
            self._facts = Facts(plan.tables, host.wall_minus_boot_ns)
            # A step may want to keep batches.
            stepless = not any(step.run for step in gadget.steps)
            see = self._engine.window if display and stepless else sees_nothing
            events = stack.enter_context(Events(loaded, plan, self._engine.columns(self._facts), see))
            self._events: Events | Playing = events
            events.intake.room = self._engine.room
            batches = self._recorded(events.run(timeout_s), host, plan.tables, stack)
            self._pending, self._batches = chained(gadget.steps, batches, loaded)
            # Opened before anything is attached: what this process does for it is no event.
            self._out = Held(display.out if display else dropped)
            self._writers = self._open_writers(display, stack) if display else {}
            if display and display.sink:
                display.sink.blocked = self._events.intake.give_away
            target = replace(HOST_TARGET, interface=gadget.values.get(INTERFACE.key, ""))
            attach.attach(loaded.hooks, target, loaded)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def lost(self) -> dict[str, Counter[Reason]]:
        """Source name -> reason -> records that were not delivered."""
        return self.books.lost

    @property
    def delivered(self) -> Counter[str]:
        """Source name -> records that were."""
        return self.books.delivered

    def countable(self, source: str) -> bool:
        """False if it cannot be known how many records of the source the kernel lost."""
        return self._events.countable(source)

    def lost_so_far(self) -> Mapping[str, Mapping[Reason | int, int]]:
        """Source name -> what was lost until it was counted last, each second: by reason, and in the kernel by CPU."""
        return self._events.so_far()

    def close(self) -> None:
        """Detach and unload everything. Whoever still iterates gets nothing more."""
        batches, self._batches = self._batches, iter(())
        if isinstance(batches, Generator):
            batches.close()  # before what it reads from: memory of the kernel that is no longer mapped then
        if not self._balanced:
            self.books.add(self._events.leave())
            self._close_books()
        self._stack.close()
        self._end()

    def _end(self) -> None:
        """Keep what the next run can use."""
        if self.gadget.program is not None:
            self.kernel_btf.keep_part(self._host, self.gadget.program)

    def stop(self) -> None:
        """End soon: what is in the buffers is still read. Safe in a signal handler."""
        self._events.stop()

    def __iter__(self) -> Iterator[Batch]:
        """The batches after every step, filters applied."""
        for batch in self._batches:
            if batch.source.name not in self.sources:
                continue
            keep = self._pending.get(batch.source.name)
            batch = batch.where(keep) if keep else batch
            self.books.take(batch, len(batch), Reason.FILTERED)
            yield batch
        self._close_books()
        self.fail_if_lost()

    def batches(self) -> Iterator[Batch]:
        """The same."""
        return iter(self)

    async def __aiter__(self) -> AsyncIterator[Batch]:
        """The same for asyncio: one thread waits for them. Whoever ends early closes the run."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        batches, loop = iter(self), asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "igrun") as thread:
            try:
                while (batch := await loop.run_in_executor(thread, next, batches, None)) is not None:
                    yield batch
            finally:
                self.stop()

    def on_batch(self, call: Callable[[Batch], object]) -> None:
        """Call it with each batch, until the run ends."""
        for batch in self:
            call(batch)

    def on_event(self, call: Callable[[Event], object]) -> None:
        """Call it with each event, until the run ends. The event is one object that moves on: keep what is in it."""
        from igrun.views import Event

        views = {name: Event() for name in self.sources}
        for batch in self:
            for event in views[batch.source.name].of(batch):
                call(event)

    def to_arrow(self, *names: str, source: str = "") -> pa.Table:
        """Everything until the run ends, as an Arrow table of the named fields (all where none is named).

        source: which data source; "" for the only one

        ParamError: there is no such source or field. UnsupportedError: pyarrow is not installed.
        """
        from igrun.engine.columnar import arrow, columns, schema

        shown = {name: one for name, one in self.sources.items() if one.referenced}
        wanted = source or (next(iter(shown)) if len(shown) == 1 else "")
        if wanted not in shown:
            problem = f'data source "{source}" not found' if source else "there is more than one data source"
            raise ParamError("source", source, problem, hint=f"source= one of {', '.join(shown)}")
        known = self.sources[wanted]
        fields = [known.field(name) for name in names] or columns(known)
        made = [batch.to_arrow(*(one.name for one in fields)) for batch in self if batch.source.name == wanted]
        return arrow().Table.from_batches(made, schema(fields))

    def to_pandas(self, *names: str, source: str = "") -> pd.DataFrame:
        """As `to_arrow`, as a DataFrame of pandas."""
        return frame("pandas", self.to_arrow(*names, source=source))

    def to_polars(self, *names: str, source: str = "") -> pl.DataFrame:
        """As `to_arrow`, as a DataFrame of polars."""
        made: pl.DataFrame = frame("polars", self.to_arrow(*names, source=source))
        return made

    def show(self) -> None:
        """Print on the display until it ends, as the params `output` and `fields` say.

        Where nobody reads any more (BrokenPipeError) the run ends, with the books closed.
        """
        try:
            self._out.release()
            self._tell_uncountable()
        except BrokenPipeError:
            self._hang_up()
        self._events.lend()
        for batch in self._batches:
            writer = self._writers.get(batch.source.name)
            if writer is not None:
                self._write(writer, batch)
            elif batch.source is TICK:
                self._display.tick()
            elif batch.source.referenced:
                self._leave(batch)
            elif batch.source.name in self.sources:
                self.books.take(batch, 0, Reason.GROUPED)
        self._close_books()
        with suppress(BrokenPipeError):
            for source, lost in self._events.untold().items():
                self._tell_lost(source, lost, {})

    def _write(self, writer: Writer, batch: Batch) -> None:
        written = False
        try:
            self._tell_lost(batch.source.name, batch.lost, batch.lost_on)
            rows = writer.write(batch)
            written = True
        except BrokenPipeError:
            self._hang_up()
        finally:
            if written:
                self.books.take(batch, rows, Reason.FILTERED)
            else:
                self._leave(batch)

    def _leave(self, batch: Batch) -> None:
        """Nobody reads what would have passed."""
        if batch.source.name in self.sources:
            keep = self._pending.get(batch.source.name)
            self.books.take(batch.where(keep) if keep else batch, 0, Reason.CLOSED)

    def _tell_uncountable(self) -> None:
        for source in sorted(self._loss_records):
            if not self.countable(source):
                self._out(uncountable_record(source))

    def _tell_lost(self, source: str, lost: Lost, lost_on: Mapping[int, int]) -> None:
        """A line of JSON for what was lost, where there are to be such lines."""
        if source in self._loss_records and losses(lost):
            self._out(loss_record(source, losses(lost), lost_on))

    def _open_writers(self, display: Display, stack: ExitStack) -> dict[str, Writer]:
        from igrun.outputs import Shown
        from igrun.outputs.modes import fields_by_source, files, mode_of

        values = self.gadget.values
        shown = {name: source for name, source in self.sources.items() if source.referenced}
        fields = fields_by_source(values.get(FIELDS.key), shown)
        modes = {name: mode_of(source, values.get(OUTPUT.key, ""), shown) for name, source in shown.items()}
        if LOSS_RECORDS.parse(values.get(LOSS_RECORDS.key, LOSS_RECORDS.default)):
            self._loss_records = frozenset(name for name, mode in modes.items() if mode in ("json", "jsonpretty"))
        into = files(modes)
        writers: dict[str, Writer] = {}
        for name, source in shown.items():
            mode = modes[name].partition("=")[0]
            what = Shown(
                source,
                mode,
                self._pending.get(name),
                self._facts,
                self._engine,
                fields.get(name),
                display.terminal,
                display.width,
                into[name],
                values,
            )
            writers[name] = plugins.output(mode).open(what, self._out)
            stack.callback(writers[name].close)
        return writers

    def _close_books(self) -> None:
        if self._balanced:
            return
        self._balanced = True
        self.books.add(self._events.untold())
        self.missed = self._loaded.missed()
        if self._recorder:
            self._recorder.end(self._events.untold(), self.missed)

    def _recorded(self, batches: Batches, host: Host, tables: Mapping[str, Table], stack: ExitStack) -> Batches:
        """The batches, written to a file on their way where the param `record` names one."""
        path = self.gadget.values.get(RECORD.key, "")
        if not path:
            return batches
        from pathlib import Path

        from igrun.recording import Recorder

        uncountable = [source for source in self.sources if not self.countable(source)]
        self._recorder = Recorder(Path(path), self.gadget.image, host, self.sources, tables, uncountable)
        stack.callback(self._recorder.close)
        return self._recorder.taken(batches)

    def fail_if_lost(self) -> None:
        """GadgetError: records were lost, and the param `fail-on-loss` is set."""
        if FAIL_ON_LOSS.parse(self.gadget.values.get(FAIL_ON_LOSS.key, FAIL_ON_LOSS.default)):
            lost = sum(sum(self.books.losses(source).values()) for source in self.sources)
            if lost:
                raise GadgetError(f"{lost} records were lost", hint="a larger --ring-size makes that rarer")

    def _hang_up(self) -> None:
        """Nobody reads any more."""
        self._writers.clear()
        self.stop()


class Replay(Run):
    """A recording that is shown as its run was: a run whose records and tables come from a file.

    The params that act in the kernel did so when it was recorded; those of operators and outputs act now.
    """

    def __init__(self, gadget: Gadget, recording: Recording, *, display: Display | None = None) -> None:
        from igrun import engine
        from igrun.recording import Answers, Played, Playing

        self.gadget, self.sources = gadget, gadget.sources
        self.books = Books(self.sources)
        self.missed = 0
        self._loss_records = frozenset()
        self._display = display or Display(dropped)
        self._balanced = False
        self._engine = engine.open()
        self._recorder = None
        self._host = recording.host
        answers = Answers()
        self._facts = Facts(answers, recording.host.wall_minus_boot_ns)
        self._loaded = Played(recording)
        self._events = Playing(recording, self.sources, self._engine.columns(self._facts), answers)
        with ExitStack() as stack:
            self._pending, self._batches = chained(gadget.steps, self._events.run(), self._loaded)
            self._out = Held(display.out if display else dropped)
            self._writers = self._open_writers(display, stack) if display else {}
            self._stack = stack.pop_all()

    def _end(self) -> None:
        """Nothing was learnt about the kernel."""


def chained(steps: tuple[Step, ...], batches: Batches, loaded: Any) -> tuple[dict[str, Predicate], Batches]:
    """Chain the procedural steps, with the filters declared before each one applied in front of it.

    Returns the predicates, by source, that nothing has applied yet, and the batches behind the last step.
    """
    pending: dict[str, Predicate] = {}
    for step in steps:
        for name, predicate in step.keep.items():
            pending[name] = And((pending[name], predicate)) if name in pending else predicate
        if step.run:
            if pending:
                batches = kept(batches, pending)
                pending = {}
            batches = step.run(batches, loaded)
    return pending, batches


def kept(batches: Batches, keep: Mapping[str, Predicate]) -> Batches:
    """The batches with only the rows for which their source's predicate holds."""
    for batch in batches:
        predicate = keep.get(batch.source.name)
        yield batch.where(predicate) if predicate else batch
