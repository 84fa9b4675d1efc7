"""A LiteDRAM core, made in a process of its own: `python -m tritloom.gen.tools.litedram_core < settings.json > core.json`.

The settings are those of LiteDRAM's own `litedram_gen`, and "simulated": whether its model takes the place of pins, PLL and memory. What
comes out: the core's Verilog, the addresses of its control registers, and what initialises the memory. `litedram_gen` itself writes a
simulated core only beside LiteX's simulation tools, which are in no package.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Any

__all__ = ["MODULE", "core"]

MODULE = "litedram_core"


def core(settings: dict[str, Any]) -> dict[str, Any]:
    """Verilog (module `MODULE`), `registers` by name, `sequence` of (address, bank, control or command, cycles), and `reads`: modules,
    delays and bit slips to level, None if there are none."""
    from litedram import modules, phy
    from litedram.gen import LiteDRAMCore
    from litedram.init import get_sdram_phy_init_sequence
    from litex.build.lattice import LatticePlatform
    from litex.build.sim import SimPlatform
    from litex.soc.integration.export import get_csr_json

    simulated = settings.pop("simulated")
    settings = settings | {"sdram_module": getattr(modules, settings["sdram_module"]), "sdram_phy": getattr(phy, settings["sdram_phy"])}
    platform = SimPlatform("", io=[]) if simulated else LatticePlatform(settings["device"], io=[], toolchain="trellis")
    made: Any = LiteDRAMCore(platform, settings)
    made.finalize()
    text = str(platform.get_verilog(made, name=MODULE, regular_comb=False))
    listed = json.loads(get_csr_json(csr_regions=made.csr_regions))["csr_registers"]
    found = made.sdram.controller.settings
    sequence, _ = get_sdram_phy_init_sequence(found.phy, found.timing)
    levels = getattr(found.phy, "read_leveling", False)
    return {"verilog": text, "registers": {name: register["addr"] for name, register in listed.items()},
            "sequence": [list(step[1:]) for step in sequence],
            "reads": {"modules": found.phy.databits // 8, "delays": found.phy.delays, "slips": found.phy.bitslips} if levels else None}


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        result = core(json.load(sys.stdin))
    json.dump(result, sys.stdout)
