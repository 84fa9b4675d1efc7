"""From a component to RTLIL and Verilog, with one module for all lanes that are alike."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.hdl import ClockSignal, Const, Fragment, Instance, ResetSignal, Value, ValueCastable
from amaranth.hdl._ir import PortDirection  # what convert() itself uses; it has no public name
from amaranth.lib import wiring

from tritloom.firmware.errors import TritloomError
from tritloom.gen.tools import yosys
from tritloom.gen.verilog import waivers

__all__ = ["Emission", "EmissionError", "to_rtlil", "to_verilog"]

DOMAIN = "sync"


class EmissionError(TritloomError):
    """A component marked `once` is not what its mark says."""


def to_rtlil(component: Any, name: str = "top") -> str:
    """RTLIL of a component as module `name`: no source positions, constant ports left out."""
    return Emission().convert(component, name)


def to_verilog(component: Any, name: str = "top") -> str:
    """Verilog of a component as module `name`, the same for the same design, with a linter's waivers as comments."""
    yosys.prepare()
    return waivers.annotate(verilog._convert_rtlil_text(to_rtlil(component, name), strip_internal_attrs=True))


@dataclass(frozen=True)
class _Module:
    name: str
    ports: list[tuple[str, int, Any]]
    text: str
    clocked: bool


class Emission:
    """RTLIL of one design. As Amaranth's `platform`, it turns components marked `rtl.once.once` into instances of shared modules.

    With `verify`, every occurrence is converted, and must be what the first one was.
    """

    def __init__(self, *, verify: bool = False):
        self._verify = verify
        self._top: Any = None
        self._modules: dict[type, list[tuple[dict[str, Any], _Module]]] = {}
        self._names: set[str] = set()
        self._instances: dict[int, Instance] = {}

    def convert(self, component: Any, name: str) -> str:
        """The design whose top is `component`, once for each Emission."""
        if self._top is not None:
            raise EmissionError("an Emission converts one design")
        self._top = component
        self._names.add(name)
        with _without_collection():
            top = self._convert(Fragment.get(component, self), component, name)
        return "".join([top.text, *(module.text for known in self._modules.values() for _, module in known)])

    def instance(self, component: Any, elaborate: Callable[[], Any]) -> Any:
        """What stands for `component` in its parent; `elaborate` makes its contents."""
        if component is self._top:
            return elaborate()
        module = self._module(component, elaborate)
        ports = [("i" if direction is PortDirection.Input else "o", name, value) for name, (value, direction) in _ports(component).items()]
        if module.clocked:
            ports += [("i", "clk", ClockSignal(DOMAIN)), ("i", "rst", ResetSignal(DOMAIN))]
        instance = Instance(module.name, *ports)
        self._instances[id(instance)] = instance
        return instance

    def _module(self, component: Any, elaborate: Callable[[], Any]) -> _Module:
        """The module that `component` shares with its equals, made if this is the first of them."""
        known = self._modules.setdefault(type(component), [])
        found = next((module for parameters, module in known if parameters == component.parameters), None)
        if found is None:
            name = self._name(type(component))
            found = self._convert(Fragment.get(elaborate(), self), component, name)
            known.append((component.parameters, found))
        elif found.ports != _outline(component):
            raise EmissionError(f"{found.name}: two components of equal parameters have different ports")
        elif self._verify and self._convert(Fragment.get(elaborate(), self), component, found.name) != found:
            raise EmissionError(f"{found.name}: two components of equal parameters differ")
        return found

    def _name(self, component: type) -> str:
        """`lookup_lane` for LookupLane; `lookup_lane_2` and so on for further parameters."""
        plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", component.__name__.strip("_")).lower()
        name, number = plain, 1
        while name in self._names:
            number += 1
            name = f"{plain}_{number}"
        self._names.add(name)
        return name

    def _convert(self, fragment: Fragment, component: Any, name: str) -> _Module:
        self._check(fragment, name)
        own = set(fragment.domains)
        text, _ = rtlil.convert_fragment(fragment, _ports(component), name, emit_src=False)
        inherited = set(fragment.domains) - own
        others = inherited - {DOMAIN}
        if component is not self._top:
            if others:
                raise EmissionError(f"{name} uses clock domains besides {DOMAIN}: {', '.join(sorted(others))}")
            text = re.sub(r"^attribute \\top 1\n", "", text, count=1, flags=re.M)
        return _Module(name, _outline(component), text, DOMAIN in inherited)

    def _check(self, fragment: Fragment, name: str) -> None:
        """Instances of shared modules must be as they were made: a ResetInserter leaves a copy, without its effect."""
        for inner, inner_name, _ in fragment.subfragments:
            if isinstance(inner, Instance):
                if inner.type in self._names and id(inner) not in self._instances:
                    raise EmissionError(f"{name}.{inner_name} stands in a ResetInserter, EnableInserter or DomainRenamer, "
                                        f"which do not reach into the shared module {inner.type}")
            else:
                self._check(inner, f"{name}.{inner_name}")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Without garbage collection: it looks at millions of objects that all are in use, and takes two fifths of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _ports(component: Any) -> dict[str, tuple[Value, PortDirection]]:
    """Ports by their names in Verilog; those that are constant or have no bits are none."""
    found = {}
    for path, member, port in component.signature.flatten(component):
        value = port.as_value() if isinstance(port, ValueCastable) else Value.cast(port)
        if len(value) and not isinstance(value, Const):
            found["__".join(map(str, path))] = (value, PortDirection.Input if member.flow == wiring.In else PortDirection.Output)
    return found


def _outline(component: Any) -> list[tuple[str, int, Any]]:
    return [(name, len(value), direction) for name, (value, direction) in _ports(component).items()]
