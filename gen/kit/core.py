"""A machine as an IP core: its Verilog, and what Vivado and FuseSoC need to know of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from tritloom.firmware.config import BuildConfig
from tritloom.gen.verilog import registers
from tritloom.gen.verilog.contents import without_zero_contents
from tritloom.gen.verilog.generate import cached_verilog, header, package_version
from tritloom.system import files

__all__ = ["TOP", "core_files", "filled", "generate_core", "with_port_declarations", "write_core"]

Progress = Callable[..., None]
"""Called with (done, total, text)."""

TOP = "tritloom"
TEMPLATES = "package_ip.tcl", "tritloom.core", "tritloom_tb.cpp"


def generate_core(config: BuildConfig) -> str:
    """The Verilog of `rtl.integration.Integration`: module `tritloom`. Takes from seconds to a minute, the first time."""
    return cached_verilog(config, kind="-core", make=_emitted)


def _emitted(config: BuildConfig) -> str:
    from tritloom.gen.verilog import emit
    from tritloom.rtl.integration import Integration

    component = Integration(config)
    text = without_zero_contents(emit.to_verilog(component, TOP))
    attributes = component.attributes()
    ports = {name: attributes.get(name, {}) for name in component.signature.members}
    return header(config) + without_brackets(with_port_declarations(text, TOP, ports))


_PORT = re.compile(r"  (input|output) (\[\d+:\d+\] )?(\w+);\n  wire (?:\[\d+:\d+\] )?\3;\n")
_BRACKETS = re.compile(r"\\[^\s\[]+\[\S+ ")


def without_brackets(verilog: str) -> str:
    """Names such as `\\sum[0] ` as `\\sum_at_0 `: Yosys gives the first one to a bit of `sum`, too, and fails where it meets both."""
    names = set(_BRACKETS.findall(verilog))
    plain = {name: name.replace("[", "_at_").replace("]", "") for name in names}
    if len(set(plain.values())) != len(names) or any(name in verilog for name in plain.values()):
        raise ValueError("two names differ only in brackets")
    return _BRACKETS.sub(lambda name: plain[name[0]], verilog)


def with_port_declarations(verilog: str, module: str, ports: Mapping[str, Mapping[str, str]]) -> str:
    """The ports of a module of wires declared in its header, in this order and with these attributes: the form that Vivado documents."""
    start = verilog.index(f"module {module}(")
    body, end = verilog.index(";\n", start) + 2, verilog.index("endmodule", start)
    found = {port[3]: port for port in _PORT.finditer(verilog, body, end)}
    if set(found) != set(ports):
        raise ValueError(f"module {module} does not have the ports {sorted(set(found) ^ set(ports))}")
    declared = ",\n".join("".join(f'  (* {key} = "{value}" *)\n' for key, value in attributes.items())
                          + f"  {found[name][1]} wire {found[name][2] or ''}{name}" for name, attributes in ports.items())
    return f"{verilog[:start]}module {module} (\n{declared}\n);\n{_PORT.sub('', verilog[body:end])}{verilog[end:]}"


def filled(template: str, values: Mapping[str, object]) -> str:
    """A file of gen/kit/templates with all of its names replaced. Raises `KeyError` for one without a value."""
    text = resources.files("tritloom.gen.kit.templates").joinpath(template).read_text("utf-8")
    return re.sub(r"@([a-z][a-z_0-9]*)@", lambda name: str(values[name[1]]), text)


def core_files(config: BuildConfig) -> dict[str, str | bytes]:
    """The files of the core but its Verilog, by name."""
    version = re.match(r"\d+\.\d+\.\d+", package_version())
    values = {"digest": f"{config.digest:08x}", "top": TOP, "version": version[0] if version else "0.0.0"}
    return {"registers.json": registers.to_json(), "registers.h": registers.to_c_header(), "config.json": config.to_json(),
            **{name: filled(name, values) for name in TEMPLATES}}


def write_core(config: BuildConfig, out_dir: str | Path, progress: Progress | None = None) -> list[Path]:
    """Write tritloom.v and the files beside it into `out_dir`; nothing if one cannot be made."""
    report = progress or (lambda *_: None)
    report(0.0, 1.0, "Verilog")
    machine: dict[str, str | bytes] = {f"{TOP}.v": generate_core(config)}
    report(0.9, 1.0, "register map and packaging")
    paths = files.write_atomically(Path(out_dir), machine | core_files(config))
    report(1.0, 1.0, "written")
    return paths
