// C interface of a simulated machine: the shared library that sim/verilated.py builds and loads.
#pragma once

#include <cstdint>

extern "C" {

// A DDR4 channel; mirrors `Dram` of sim/memory.py, which has the meaning. Times are in DRAM clocks.
struct SimDramParameters {
    uint32_t ticks_per_clock;  // 0: no channel is modelled, the ports follow SimParameters alone
    uint32_t ticks_per_cycle;
    uint32_t bank_groups, banks, row_lines;
    uint32_t activate, precharge, row_open, row_cycle;
    uint32_t activate_gap, four_activates;
    uint32_t column_gap, column_gap_group;
    uint32_t read_latency, write_latency, read_to_write, write_to_read, read_to_close, write_to_close;
    uint32_t refresh_interval, refresh;
    uint32_t window, hit_limit, write_wait, buffer_lines, stagger, pair_gap;
};

// Timing and size of the memory behind the AXI ports, in clock cycles and bytes; mirrors sim/verilated.py.
struct SimParameters {
    uint64_t port_bytes;        // memory behind each port
    uint64_t seed;              // of the jitter
    uint32_t latency;           // from an accepted request to its first beat
    uint32_t jitter;            // up to this many cycles more, at random
    uint32_t refresh_interval;  // 0: never
    uint32_t refresh_cycles;    // no beats for so long
    uint32_t outstanding;       // reads a port accepts before it delivers
    SimDramParameters dram;
};

// What goes wrong with some bursts of a port's channel.
struct SimFault {
    uint64_t low, high;       // bursts that begin at these bytes of the port's memory
    uint64_t skip;            // so many of them are served well before
    uint64_t count;           // so many of them fail then
    uint64_t stall;           // cycles that they wait longer; UINT64_MAX: until sim_heal
    uint32_t write;           // of the write channel, else of the read channel
    uint32_t response;        // 0: OKAY, 2: SLVERR, 3: DECERR; with an error, wrong data is read, and nothing written
};

struct SimDramStatistics {
    uint64_t reads, writes;   // accesses of 64 bytes
    uint64_t activates;       // rows opened
    uint64_t conflicts;       // rows closed to open another one
    uint64_t refreshes;
};

struct SimPortStatistics {
    uint64_t read_bursts, read_beats, write_bursts, write_beats;
    uint64_t refresh_waits;   // cycles in which a refresh kept requested beats back
    uint64_t latency_waits;   // cycles without a beat though reads were outstanding
    uint64_t ready_waits;     // cycles in which the machine did not take an offered beat
    uint64_t most_outstanding;
};

enum SimStatus : int32_t { SIM_OK = 0, SIM_TIMEOUT = 1, SIM_BUS_ERROR = 2, SIM_RANGE = 3, SIM_ABSENT = 4 };
enum SimStop : uint32_t { SIM_STOP_IRQ = 1, SIM_STOP_ERROR = 2 };

void *sim_create(const SimParameters *parameters);
void sim_destroy(void *handle);
void sim_reset(void *handle, uint32_t cycles);
void sim_set_base(void *handle, uint32_t port, uint64_t base);
void sim_fault(void *handle, uint32_t port, const SimFault *fault);
void sim_heal(void *handle);  // no more faults, and what waits is answered
int64_t sim_run(void *handle, uint64_t max_cycles, uint32_t stop_mask);
int32_t sim_csr_write(void *handle, uint32_t address, uint32_t value, uint32_t max_cycles);
int32_t sim_csr_read(void *handle, uint32_t address, uint32_t *value, uint32_t max_cycles);
int32_t sim_mem_write(void *handle, uint64_t address, const uint8_t *bytes, uint64_t length);
int32_t sim_mem_read(void *handle, uint64_t address, uint8_t *bytes, uint64_t length);
uint64_t sim_cycles(void *handle);
uint32_t sim_irq(void *handle);
int32_t sim_port_statistics(void *handle, uint32_t port, SimPortStatistics *out);
int32_t sim_dram_statistics(void *handle, SimDramStatistics *out);
void sim_histogram(void *handle, uint64_t *out /* [256][2] */);
void sim_clear_statistics(void *handle);
void sim_trace_enable(void *handle, uint32_t on, uint64_t max_bytes);
uint64_t sim_trace(void *handle, const uint8_t **data);  // returns the bytes recorded
uint64_t sim_trace_lost(void *handle);
void sim_trace_clear(void *handle);
uint64_t sim_error_count(void *handle);
const char *sim_error(void *handle);  // the first one, empty if none
}
