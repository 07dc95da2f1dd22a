"""Interfaces that come and go while a gadget runs: its programs are attached to what comes.

The kernel tells of them, by rtnetlink, in each network namespace that a target's interfaces are in. What a target has
is then looked for as at the start.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from igrun.attach.interfaces import Place
from igrun.attach.namespaces import Namespace, opened, own
from igrun.dataclass import dataclass
from igrun.errors import AttachError, KernelError, UnsupportedError
from igrun.logs import DEBUG, INFO, Logger
from igrun.netlink import ALL, OWN_NSID, Changes, Netlink

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.load import LoadedProgram
    from igrun.program import Hook
    from igrun.record import Batches

LOG = Logger(__name__)


@dataclass(frozen=True, slots=True)
class Followed:
    """A program at a target, and the namespace that its interfaces are in. module: of its family"""

    module: ModuleType
    hook: Hook
    target: Target
    namespace: Namespace


class Following:
    """Keeps programs attached to the interfaces that their targets have. A `Reader` for the event loop, of no rows."""

    def __init__(self, loaded: LoadedProgram) -> None:
        self._loaded = loaded
        self._changes = Changes()
        self._followed: list[Followed] = []
        self._ids: dict[int, Namespace] = {}

    def fileno(self) -> int:
        return self._changes.fileno()

    def close(self) -> None:
        """Follow nothing any more. Again: nothing."""
        self._followed.clear()
        self._changes.close()

    def follow(self, module: ModuleType, hook: Hook, target: Target) -> None:
        """From now on. AttachError: there is no such namespace; KernelError: it is closed to this process."""
        one = Followed(module, hook, target, module.namespace(hook, target))
        if one in self._followed:
            return
        self._ids[self._id(one.namespace)] = one.namespace
        self._followed.append(one)

    def forget(self, target: Target) -> None:
        """Follow this target no more."""
        self._followed = [one for one in self._followed if one.target != target]

    def read(self) -> Batches:
        """Attach to what has come, detach from what is gone."""
        changed = self._changes.read()
        for nsid, namespace in tuple(self._ids.items()):
            if changed is None:
                self._update(namespace, None)
            elif nsid in changed:
                gone = changed[nsid]
                self._update(namespace, None if ALL in gone else gone)
                if ALL in gone:
                    del self._ids[nsid]
                    self._followed = [one for one in self._followed if one.namespace != namespace]
        return iter(())

    def _id(self, namespace: Namespace) -> int:
        if namespace == own():
            return OWN_NSID
        if self._loaded.host.missing_capabilities("CAP_NET_BROADCAST"):
            LOG.info("interfaces that containers get later are not seen: CAP_NET_BROADCAST is missing")
        fd = opened(namespace)
        try:
            with Netlink() as netlink:
                return netlink.give_namespace_id(fd)
        finally:
            os.close(fd)

    def _update(self, namespace: Namespace, gone: set[int] | None) -> None:
        """gone: indexes of interfaces that are, even if there is one with that index again; None: it may be any."""
        links = self._loaded.links
        here = [one for one in self._followed if one.namespace == namespace]
        for one in here:
            for key in links.of(one.target):
                place = key[1]
                if isinstance(place, Place) and place.netns == namespace.inode and (gone is None or place.own in gone):
                    self._tell(one, "%s is gone", place)
                    links.end(key)
        for one in here:
            try:
                places = one.module.places(one.hook, one.target)
            except AttachError:  # the one that was named is gone, or all of the target
                places = ()
            except KernelError as error:
                LOG.warning("%s", error)
                continue
            self._attach(one, places)
        links.refresh()

    def _attach(self, one: Followed, places: Iterable[Place]) -> None:
        loaded, program = self._loaded, one.hook.program
        if not loaded.choices.needed(program) or program in loaded.choices.left_out:
            return
        wanted = {(program, place): place for place in places}
        known = {key for key in loaded.links.of(one.target) if key[0] == program}
        for key in known - wanted.keys():
            self._tell(one, "%s is gone", key[1])
        loaded.links.release(one.target, known - wanted.keys())
        for key, place in wanted.items():
            if key in known:
                continue
            try:
                loaded.links.add(key, one.target, partial(one.module.attach, one.hook, place))
            except (KernelError, UnsupportedError) as error:
                LOG.warning("%s", error)
                continue
            self._tell(one, "%s is there: the gadget sees it", place)
            loaded.choices.choose(program, one.target.name)
        loaded.drop_unneeded()

    def _tell(self, one: Followed, text: str, place: Hashable) -> None:
        """Who named an interface wants to know."""
        name = place.name if isinstance(place, Place) else place
        LOG.log(INFO if one.target.interface else DEBUG, text, f"interface {name}")
