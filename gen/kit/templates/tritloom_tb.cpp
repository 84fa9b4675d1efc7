// Resets the machine and reads who it is over AXI4-Lite. Ends with status 0 if it is what it should be; an argument is another digest.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include "Vtritloom.h"
#include "registers.h"
#include "verilated.h"

static Vtritloom top;

static void cycle() {
    top.aclk = 0, top.eval();
    top.aclk = 1, top.eval();
}

static bool read(uint32_t address, uint32_t &value) {
    top.s_axi_araddr = address, top.s_axi_arvalid = 1, top.s_axi_rready = 1;
    for (int waited = 0; waited < 100; waited++) {
        top.eval();
        const bool accepted = top.s_axi_arready, answered = top.s_axi_rvalid;
        value = top.s_axi_rdata;
        const bool okay = top.s_axi_rresp == 0;
        cycle();
        if (accepted) top.s_axi_arvalid = 0;
        if (answered) return okay;
    }
    return false;
}

int main(int argc, char **argv) {
    const struct { const char *name; uint32_t address, expected; } known[] = {
        {"ID", TRITLOOM_ID, TRITLOOM_IDENTIFIER},
        {"VERSION", TRITLOOM_VERSION, TRITLOOM_MAP_VERSION},
        {"DIGEST", TRITLOOM_DIGEST, argc > 1 ? uint32_t(std::strtoul(argv[1], nullptr, 16)) : 0x@digest@u},
    };
    top.aresetn = 0;
    for (int i = 0; i < 8; i++) cycle();
    top.aresetn = 1;
    int wrong = 0;
    for (const auto &each : known) {
        uint32_t value = 0;
        const bool answered = read(each.address, value);
        const bool right = answered && value == each.expected;
        std::printf("%s: 0x%08x%s\n", each.name, value, right ? "" : answered ? ", WRONG" : ", NOT ANSWERED");
        wrong += !right;
    }
    if (top.irq) std::printf("irq is high after reset\n"), wrong++;
    top.final();
    return wrong != 0;
}
