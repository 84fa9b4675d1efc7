"""Components whose module is emitted once, however often they occur: the lanes of a machine."""

from __future__ import annotations

import functools
import inspect
from typing import TypeVar

from amaranth.lib import wiring

__all__ = ["once"]

T = TypeVar("T", bound=type[wiring.Component])


def once(component: T) -> T:
    """Mark a component class: equal instances share one module of the emitted design.

    Instances are equal if their constructors were given equal arguments, kept as `parameters`. These must say
    everything about the component: nothing may be changed after construction.

    Elaborated for a `platform` that has `instance` (`gen.verilog.emit.Emission`), the component becomes an instance of
    its module; for any other it is elaborated in place, as Amaranth's simulator needs it. It uses no clock domain of its
    parent but sync, whose clock and reset the instance is given, and must not stand inside a ResetInserter,
    EnableInserter or DomainRenamer: these do not reach into an instance, and the emission refuses them.
    """
    construct, build = component.__init__, component.elaborate
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def __init__(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        if type(self) is component:
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            self.parameters = dict(list(given.arguments.items())[1:])

    @functools.wraps(build)
    def elaborate(self, platform):
        instance = getattr(platform, "instance", None)
        if instance is None or type(self) is not component:
            return build(self, platform)
        return instance(self, functools.partial(build, self, platform))

    component.__init__, component.elaborate = __init__, elaborate
    return component
