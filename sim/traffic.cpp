// Ports that read as fast as they are served, straight from the memory model: how tests and presets know its rates.
#include <algorithm>
#include <cstdint>
#include <deque>

#include "dram.h"

struct TrafficResult {
    uint64_t cycles, beats, latency_sum, bursts;
    SimDramStatistics statistics;
};

// `ports` ports of `beat_bytes` read `bursts` bursts of `burst_bytes` each: one after another from address 0, or,
// if `random`, anywhere in `parameters->port_bytes`. Every port keeps as many bursts under way as it may, though no
// more than `lead` bursts ahead of the slowest port, and takes one beat per cycle.
extern "C" void traffic(const SimParameters *parameters, uint32_t ports, uint32_t beat_bytes, uint32_t burst_bytes, uint64_t bursts, uint32_t random, uint64_t lead,
                        TrafficResult *out) {
    struct Burst {
        uint64_t address, start;
        uint32_t left;
    };
    Dram dram;
    dram.create(ports, *parameters);
    Random choice(parameters->seed + 1000);
    std::deque<Burst> under_way[64];
    uint64_t asked[64] = {}, finished[64] = {}, open = ports;
    TrafficResult result{};
    while (open) {
        dram.advance(result.cycles);
        open = 0;
        uint64_t slowest = *std::min_element(finished, finished + ports);
        for (uint32_t port = 0; port < ports; port++) {
            auto &queue = under_way[port];
            if (!queue.empty() && dram.done(port, false, result.cycles)) {
                Burst &front = queue.front();
                front.address += beat_bytes;
                front.left -= beat_bytes;
                result.beats++;
                if (!front.left || front.address % Dram::kLine == 0) dram.pop(port, false);
                if (!front.left) {
                    result.latency_sum += result.cycles - front.start;
                    result.bursts++;
                    finished[port]++;
                    queue.pop_front();
                }
            }
            if (asked[port] < bursts && queue.size() < parameters->outstanding && asked[port] < slowest + lead) {
                uint64_t place = random ? choice.below(static_cast<uint32_t>(parameters->port_bytes / burst_bytes)) : asked[port];
                asked[port]++;
                queue.push_back({place * burst_bytes, result.cycles, burst_bytes});
                dram.request(port, false, result.cycles, place * burst_bytes, burst_bytes);
            }
            open += !queue.empty();
        }
        result.cycles++;
    }
    result.statistics = dram.statistics;
    *out = result;
}
