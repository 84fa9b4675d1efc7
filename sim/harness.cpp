// The clock loop of a simulated machine, with its memory, in one shared library.
//
// A cycle is two evaluations. With the clock low, the inputs of the cycle settle and all outputs
// are sampled; with the clock high, the registers take them. The models compute their next pins
// from the sample and drive them after the rising edge, as a register would.
//
// ports.h is generated from the port list: see sim/verilated.py.
#include "harness.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "Vtop.h"
#include "dram.h"
#include "verilated.h"

// Pins of one AXI4 port, as addresses of the model's variables. Widths of 32 bits and more, and
// strobes, are reached as bytes: the host is little-endian, and so is Verilator's word order.
struct AxiPins {
    uint8_t *arvalid, *arready, *arlen, *arsize, *arburst;
    uint64_t *araddr;
    uint8_t *rvalid, *rready, *rresp, *rlast, *rdata;
    uint8_t *awvalid, *awready, *awlen, *awsize, *awburst;
    uint64_t *awaddr;
    uint8_t *wvalid, *wready, *wlast, *wdata, *wstrb;
    uint8_t *bvalid, *bready, *bresp;
};

#include "ports.h"

namespace {

constexpr uint32_t kPorts = AXI_PORTS;
constexpr uint32_t kDataBytes = DATA_BYTES;
constexpr uint32_t kStrobeBytes = (DATA_BYTES + 7) / 8;
constexpr uint32_t kBeatBytes = kPorts ? kPorts * kDataBytes : 1;
constexpr uint64_t kPage = 4096;
constexpr uint32_t kWriteQueue = 64;
constexpr uint8_t kIncrement = 1;
constexpr uint8_t kDecodeError = 3;

uint32_t log2_of(uint32_t value) {
    uint32_t bits = 0;
    while ((1u << bits) < value) bits++;
    return bits;
}

// The first error's text, and how many there were.
class Errors {
  public:
    uint64_t count = 0;
    char text[256] = "";

    void add(uint64_t cycle, const char *format, ...) __attribute__((format(printf, 3, 4))) {
        if (count++) return;
        int used = snprintf(text, sizeof text, "cycle %llu: ", static_cast<unsigned long long>(cycle));
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text + used, sizeof text - used, format, arguments);
        va_end(arguments);
    }
};

// A channel's request that must not change until it is accepted.
struct Held {
    bool waiting = false;
    uint64_t address = 0;
    uint8_t length = 0;
};

// Memory behind one AXI4 port, and a check of what the master does.
class Port {
  public:
    SimPortStatistics statistics{};
    uint64_t base = 0;

    void create(uint32_t index, const AxiPins &pins, const SimParameters &parameters, Errors *errors, Dram *dram) {
        index_ = index;
        dram_ = dram->on() ? dram : nullptr;
        pins_ = pins;
        parameters_ = parameters;
        errors_ = errors;
        random_ = Random(parameters.seed * 64 + index);
        void *mapped = mmap(nullptr, parameters.port_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        memory_ = mapped == MAP_FAILED ? nullptr : static_cast<uint8_t *>(mapped);
        reset();
    }

    void destroy() {
        if (memory_) munmap(memory_, parameters_.port_bytes);
        memory_ = nullptr;
    }

    bool usable() const { return memory_ != nullptr; }
    uint8_t *memory() { return memory_; }

    void fault(const SimFault &fault) { faults_[fault.write ? 1 : 0] = fault; }

    void heal() {
        faults_[0] = faults_[1] = SimFault{};
        for (Burst &burst : reads_) burst.time = 0;
        for (Burst &burst : addresses_) burst.stall = 0;
        for (Beat &beat : commits_) beat.time = 0;
    }

    // Forget everything under way; the memory keeps its contents.
    void reset() {
        reads_.clear();
        addresses_.clear();
        beats_.clear();
        commits_.clear();
        responses_.clear();
        read_held_ = write_held_ = Held();
        data_waiting_ = false;
        arready_ = awready_ = wready_ = true;
        rvalid_ = bvalid_ = false;
        drive();
    }

    // See what the master does in cycle `now`, and decide the pins of the next.
    void sample(uint64_t now, bool refresh) {
        sample_reads(now, refresh);
        if (*pins_.awvalid || *pins_.wvalid || writing()) sample_writes(now, refresh);
    }

    void drive() {
        *pins_.arready = arready_;
        *pins_.rvalid = rvalid_;
        if (rvalid_ && next_beat_) {
            memcpy(pins_.rdata, next_beat_, kDataBytes);
            *pins_.rlast = rlast_;
            *pins_.rresp = rresp_;
            next_beat_ = nullptr;
        }
        *pins_.awready = awready_;
        *pins_.wready = wready_;
        *pins_.bvalid = bvalid_;
        *pins_.bresp = bvalid_ ? responses_.front() : 0;
    }

  private:
    struct Burst {
        uint64_t address;
        uint64_t time;
        uint32_t beats;
        uint32_t sent;
        uint64_t stall;
        uint8_t response;
    };
    struct Beat {
        uint8_t data[kDataBytes ? kDataBytes : 1];
        uint8_t strobes[kStrobeBytes ? kStrobeBytes : 1];
        uint64_t address;
        uint64_t time;
        uint8_t response;
        bool last;
    };

    // A burst, with what is wrong with it.
    Burst begin(bool write, uint64_t address, uint32_t beats) {
        SimFault &fault = faults_[write];
        Burst burst = {address, 0, beats, 0, 0, 0};
        if (!fault.count || address < fault.low || address >= fault.high) return burst;
        if (fault.skip) {
            fault.skip--;
            return burst;
        }
        fault.count--;
        burst.stall = fault.stall;
        burst.response = static_cast<uint8_t>(fault.response);
        return burst;
    }

    static uint64_t later(uint64_t time, uint64_t stall) { return stall > UINT64_MAX - time ? UINT64_MAX : time + stall; }

    bool writing() const { return bvalid_ || !responses_.empty() || !addresses_.empty() || !beats_.empty() || !commits_.empty() || write_held_.waiting || data_waiting_; }

    uint64_t delay() { return parameters_.latency + (parameters_.jitter ? random_.below(parameters_.jitter + 1) : 0); }

    void check_request(uint64_t now, const char *channel, Held &held, bool valid, bool ready, uint64_t address, uint8_t length, uint8_t size, uint8_t burst) {
        auto fail = [&](const char *what) {
            errors_->add(now, "port %u %s: %s (address 0x%llx, %u beats)", index_, channel, what, static_cast<unsigned long long>(address), length + 1u);
        };
        if (held.waiting) {
            if (!valid) fail("valid fell before ready");
            else if (held.address != address || held.length != length) fail("request changed while it waited");
        }
        held = {valid && !ready, address, length};
        if (!(valid && ready)) return;
        uint64_t bytes = (length + 1ull) * kDataBytes;
        if (size != log2_of(kDataBytes)) fail("size is not the port's width");
        if (burst != kIncrement) fail("burst type is not INCR");
        if (address % kDataBytes) fail("address is not aligned");
        if (address / kPage != (address + bytes - 1) / kPage) fail("burst crosses 4 KiB");
        if (address < base || address - base + bytes > parameters_.port_bytes) fail("access beyond the memory");
    }

    void sample_reads(uint64_t now, bool refresh) {
        if (*pins_.arvalid || read_held_.waiting) {
            check_request(now, "read", read_held_, *pins_.arvalid, arready_, *pins_.araddr, *pins_.arlen, *pins_.arsize, *pins_.arburst);
            if (*pins_.arvalid && arready_) {
                uint64_t address = *pins_.araddr - base;
                Burst burst = begin(false, address, *pins_.arlen + 1u);
                burst.time = dram_ ? (burst.stall ? later(now, burst.stall) : 0) : later(now + delay(), burst.stall);
                reads_.push_back(burst);
                if (dram_) dram_->request(index_, false, now, address, (*pins_.arlen + 1ull) * kDataBytes);
                statistics.read_bursts++;
                if (reads_.size() > statistics.most_outstanding) statistics.most_outstanding = reads_.size();
            }
        }
        if (rvalid_) {
            if (!*pins_.rready) {
                statistics.ready_waits++;
            } else {
                statistics.read_beats++;
                rvalid_ = false;
                Burst &front = reads_.front();
                front.sent++;
                if (dram_ && (front.sent == front.beats || (front.address + front.sent * uint64_t{kDataBytes}) % Dram::kLine == 0)) dram_->pop(index_, false);
                if (front.sent == front.beats) reads_.pop_front();
            }
        }
        if (!rvalid_ && !reads_.empty()) {
            const Burst &front = reads_.front();
            bool ready = front.time <= now + 1 && (dram_ ? dram_->done(index_, false, now + 1) : !refresh);
            if (!ready) {
                (refresh ? statistics.refresh_waits : statistics.latency_waits)++;
            } else {
                uint64_t offset = front.address + static_cast<uint64_t>(front.sent) * kDataBytes;
                bool inside = offset + kDataBytes <= parameters_.port_bytes;
                static const std::vector<uint8_t> wrong(kDataBytes ? kDataBytes : 1, 0xA5);
                next_beat_ = front.response ? wrong.data() : inside ? memory_ + offset : memory_;
                rlast_ = front.sent + 1 == front.beats;
                rresp_ = inside ? front.response : kDecodeError;
                rvalid_ = true;
            }
        }
        arready_ = reads_.size() < parameters_.outstanding;
    }

    void sample_writes(uint64_t now, bool refresh) {
        check_request(now, "write", write_held_, *pins_.awvalid, awready_, *pins_.awaddr, *pins_.awlen, *pins_.awsize, *pins_.awburst);
        if (*pins_.awvalid && awready_) {
            addresses_.push_back(begin(true, *pins_.awaddr - base, *pins_.awlen + 1u));
            statistics.write_bursts++;
        }
        sample_write_data(now);
        match_writes(now);
        commit_writes(now, refresh);
        if (bvalid_ && *pins_.bready) {
            bvalid_ = false;
            responses_.pop_front();
        }
        bvalid_ = !responses_.empty();
        awready_ = addresses_.size() < kWriteQueue;
        wready_ = beats_.size() + commits_.size() < kWriteQueue;
    }

    void sample_write_data(uint64_t now) {
        if (data_waiting_ && (!*pins_.wvalid || memcmp(held_beat_.data, pins_.wdata, kDataBytes) || memcmp(held_beat_.strobes, pins_.wstrb, kStrobeBytes)))
            errors_->add(now, "port %u write data changed while it waited", index_);
        data_waiting_ = *pins_.wvalid && !wready_;
        if (!*pins_.wvalid) return;
        memcpy(held_beat_.data, pins_.wdata, kDataBytes);
        memcpy(held_beat_.strobes, pins_.wstrb, kStrobeBytes);
        held_beat_.last = *pins_.wlast;
        if (wready_) {
            beats_.push_back(held_beat_);
            statistics.write_beats++;
        }
    }

    // Give each data beat its address, once that is known.
    void match_writes(uint64_t now) {
        while (!addresses_.empty() && !beats_.empty()) {
            Burst &burst = addresses_.front();
            Beat beat = beats_.front();
            beats_.pop_front();
            beat.address = burst.address + static_cast<uint64_t>(burst.sent) * kDataBytes;
            if (dram_) dram_->request(index_, true, now, beat.address, kDataBytes);
            beat.time = later(dram_ ? now : now + delay(), burst.stall);
            beat.response = burst.response;
            burst.sent++;
            bool last = burst.sent == burst.beats;
            if (beat.last != last) errors_->add(now, "port %u write: wlast is %d on beat %u of %u", index_, beat.last, burst.sent, burst.beats);
            beat.last = last;
            commits_.push_back(beat);
            if (last) addresses_.pop_front();
        }
    }

    // Write late: only a master that waits for the response reads what it wrote.
    void commit_writes(uint64_t now, bool refresh) {
        if (commits_.empty() || commits_.front().time > now || (dram_ ? !dram_->done(index_, true, now) : refresh)) return;
        if (dram_) dram_->pop(index_, true);
        const Beat &beat = commits_.front();
        if (!beat.response && beat.address + kDataBytes <= parameters_.port_bytes)
            for (uint32_t i = 0; i < kDataBytes; i++)
                if (beat.strobes[i / 8] >> (i % 8) & 1) memory_[beat.address + i] = beat.data[i];
        if (beat.last) responses_.push_back(beat.response);
        commits_.pop_front();
    }

    uint32_t index_ = 0;
    AxiPins pins_{};
    SimParameters parameters_{};
    Errors *errors_ = nullptr;
    Dram *dram_ = nullptr;
    Random random_{0};
    uint8_t *memory_ = nullptr;

    std::deque<Burst> reads_, addresses_;
    std::deque<Beat> beats_, commits_;
    std::deque<uint8_t> responses_;
    SimFault faults_[2] = {};
    Held read_held_, write_held_;
    Beat held_beat_{};
    bool data_waiting_ = false;

    const uint8_t *next_beat_ = nullptr;
    bool arready_ = true, rvalid_ = false, rlast_ = false, awready_ = true, wready_ = true, bvalid_ = false;
    uint8_t rresp_ = 0;
};

// One recorded trace event; the data words follow it.
struct TraceRecord {
    uint64_t cycle;
    uint32_t index;
    uint8_t unit;
    uint8_t slot;
    uint16_t reserved;
};

class Machine {
  public:
    Errors errors;
    Dram dram;
    Port ports[kPorts ? kPorts : 1];
    uint64_t cycle = 0;
    uint64_t histogram[256][2] = {};
    std::vector<uint8_t> trace;
    uint64_t trace_limit = 0, trace_lost = 0;
    bool tracing = false;

    bool create(const SimParameters &parameters) {
        parameters_ = parameters;
        context_ = new VerilatedContext;
        top_ = new Vtop(context_, "top");
        top_->clk = 0;
        top_->rst = 1;
        idle_csr();
        AxiPins pins[kPorts ? kPorts : 1] = {};
        bind_ports(top_, pins);
        dram.create(kPorts, parameters);
        for (uint32_t i = 0; i < kPorts; i++) {
            ports[i].create(i, pins[i], parameters, &errors, &dram);
            if (!ports[i].usable()) return false;
        }
        return true;
    }

    void destroy() {
        for (uint32_t i = 0; i < kPorts; i++) ports[i].destroy();
        if (top_) top_->final();
        delete top_;
        delete context_;
    }

    void reset(uint32_t cycles) {
        top_->rst = 1;
        idle_csr();
        dram.reset();
        for (uint32_t i = 0; i < kPorts; i++) ports[i].reset();
        for (uint32_t i = 0; i < cycles; i++) {
            clock_low();
            clock_high();
        }
        top_->rst = 0;
    }

    bool irq() const {
#if HAS_IRQ
        return top_->irq;
#else
        return false;
#endif
    }

    int64_t run(uint64_t max_cycles, uint32_t stop_mask) {
        uint64_t done = 0;
        const bool stop_irq = stop_mask & SIM_STOP_IRQ, stop_error = stop_mask & SIM_STOP_ERROR;
        while (done < max_cycles && !(stop_irq && irq()) && !(stop_error && errors.count)) {
            step();
            done++;
        }
        return static_cast<int64_t>(done);
    }

    int32_t csr_write(uint32_t address, uint32_t value, uint32_t max_cycles) {
#if HAS_CSR
        top_->s_axi_awaddr = address;
        top_->s_axi_wdata = value;
        top_->s_axi_wstrb = 15;
        top_->s_axi_awvalid = top_->s_axi_wvalid = top_->s_axi_bready = 1;
        int32_t status = SIM_TIMEOUT;
        for (uint32_t i = 0; i < max_cycles && status == SIM_TIMEOUT; i++) {
            clock_low();
            bool address_taken = top_->s_axi_awvalid && top_->s_axi_awready;
            bool data_taken = top_->s_axi_wvalid && top_->s_axi_wready;
            bool answered = top_->s_axi_bvalid;
            bool good = top_->s_axi_bresp == 0;
            observe();
            clock_high();
            if (address_taken) top_->s_axi_awvalid = 0;
            if (data_taken) top_->s_axi_wvalid = 0;
            if (answered) status = good ? SIM_OK : SIM_BUS_ERROR;
        }
        idle_csr();
        return status;
#else
        return SIM_ABSENT;
#endif
    }

    int32_t csr_read(uint32_t address, uint32_t *value, uint32_t max_cycles) {
#if HAS_CSR
        top_->s_axi_araddr = address;
        top_->s_axi_arvalid = top_->s_axi_rready = 1;
        int32_t status = SIM_TIMEOUT;
        for (uint32_t i = 0; i < max_cycles && status == SIM_TIMEOUT; i++) {
            clock_low();
            bool taken = top_->s_axi_arvalid && top_->s_axi_arready;
            bool answered = top_->s_axi_rvalid;
            bool good = top_->s_axi_rresp == 0;
            *value = top_->s_axi_rdata;
            observe();
            clock_high();
            if (taken) top_->s_axi_arvalid = 0;
            if (answered) status = good ? SIM_OK : SIM_BUS_ERROR;
        }
        idle_csr();
        return status;
#else
        return SIM_ABSENT;
#endif
    }

    // Copy between the logical byte space and the ports' stripes.
    int32_t access(uint64_t address, uint8_t *to, const uint8_t *from, uint64_t length) {
        if (kPorts == 0) return SIM_ABSENT;
        uint64_t total = parameters_.port_bytes * kPorts;
        if (address > total || length > total - address) return SIM_RANGE;
        while (length) {
            uint64_t within = address % kBeatBytes;
            uint64_t piece = kPorts == 1 ? length : kDataBytes - within % kDataBytes;
            if (piece > length) piece = length;
            uint8_t *place = ports[within / (kDataBytes ? kDataBytes : 1)].memory() + (kPorts == 1 ? address : address / kBeatBytes * kDataBytes + within % kDataBytes);
            if (kPorts == 1) place = ports[0].memory() + address;
            if (to) {
                memcpy(to, place, piece);
                to += piece;
            } else {
                memcpy(place, from, piece);
                from += piece;
            }
            address += piece;
            length -= piece;
        }
        return SIM_OK;
    }

  private:
    void clock_low() {
        top_->clk = 0;
        top_->eval();
    }

    // The models see the settled cycle; their new pins wait for the rising edge.
    void observe() {
        if (kPorts) {
            bool refresh = false;
            if (dram.on()) {
                dram.advance(cycle);
                refresh = dram.refreshing();
            } else if (parameters_.refresh_interval) {
                if (++refresh_clock_ == parameters_.refresh_interval) refresh_clock_ = 0;
                refresh = refresh_clock_ >= parameters_.refresh_interval - parameters_.refresh_cycles;
            }
            for (uint32_t i = 0; i < kPorts; i++) ports[i].sample(cycle, refresh);
        }
#if HAS_UNIT_BUSY || HAS_WEIGHT_BEAT
        histogram[HAS_UNIT_BUSY ? unit_busy(top_) : 0][HAS_WEIGHT_BEAT ? weight_beat(top_) : 0]++;
#endif
#if HAS_TRACE
        if (tracing) each_trace(top_, [this](unsigned unit, unsigned slot, unsigned index, const void *data) { record(unit, slot, index, data); });
#endif
        driving_ = true;
    }

    void clock_high() {
        top_->clk = 1;
        top_->eval();
        if (driving_)
            for (uint32_t i = 0; i < kPorts; i++) ports[i].drive();
        driving_ = false;
        cycle++;
    }

    void step() {
        clock_low();
        observe();
        clock_high();
    }

    void idle_csr() {
#if HAS_CSR
        top_->s_axi_awvalid = top_->s_axi_wvalid = top_->s_axi_bready = 0;
        top_->s_axi_arvalid = top_->s_axi_rready = 0;
#endif
    }

#if HAS_TRACE
    void record(unsigned unit, unsigned slot, unsigned index, const void *data) {
        constexpr size_t bytes = sizeof(TraceRecord) + 4 * TRACE_WORDS;
        if (trace.size() + bytes > trace_limit) {
            trace_lost++;
            return;
        }
        TraceRecord record = {cycle, static_cast<uint32_t>(index), static_cast<uint8_t>(unit), static_cast<uint8_t>(slot), 0};
        size_t place = trace.size();
        trace.resize(place + bytes);
        memcpy(&trace[place], &record, sizeof record);
        memcpy(&trace[place + sizeof record], data, 4 * TRACE_WORDS);
    }
#endif

    SimParameters parameters_{};
    VerilatedContext *context_ = nullptr;
    Vtop *top_ = nullptr;
    uint32_t refresh_clock_ = 0;
    bool driving_ = false;
};

Machine *machine(void *handle) { return static_cast<Machine *>(handle); }

}  // namespace

extern "C" {

void *sim_create(const SimParameters *parameters) {
    auto *created = new Machine;
    if (created->create(*parameters)) return created;
    created->destroy();
    delete created;
    return nullptr;
}

void sim_destroy(void *handle) {
    machine(handle)->destroy();
    delete machine(handle);
}

void sim_reset(void *handle, uint32_t cycles) { machine(handle)->reset(cycles); }

void sim_set_base(void *handle, uint32_t port, uint64_t base) {
    if (port < kPorts) machine(handle)->ports[port].base = base;
}

void sim_fault(void *handle, uint32_t port, const SimFault *fault) {
    if (port < kPorts) machine(handle)->ports[port].fault(*fault);
}

void sim_heal(void *handle) {
    for (uint32_t i = 0; i < kPorts; i++) machine(handle)->ports[i].heal();
}

int64_t sim_run(void *handle, uint64_t max_cycles, uint32_t stop_mask) { return machine(handle)->run(max_cycles, stop_mask); }

int32_t sim_csr_write(void *handle, uint32_t address, uint32_t value, uint32_t max_cycles) { return machine(handle)->csr_write(address, value, max_cycles); }

int32_t sim_csr_read(void *handle, uint32_t address, uint32_t *value, uint32_t max_cycles) { return machine(handle)->csr_read(address, value, max_cycles); }

int32_t sim_mem_write(void *handle, uint64_t address, const uint8_t *bytes, uint64_t length) { return machine(handle)->access(address, nullptr, bytes, length); }

int32_t sim_mem_read(void *handle, uint64_t address, uint8_t *bytes, uint64_t length) { return machine(handle)->access(address, bytes, nullptr, length); }

uint64_t sim_cycles(void *handle) { return machine(handle)->cycle; }

uint32_t sim_irq(void *handle) { return machine(handle)->irq(); }

int32_t sim_port_statistics(void *handle, uint32_t port, SimPortStatistics *out) {
    if (port >= kPorts) return SIM_ABSENT;
    *out = machine(handle)->ports[port].statistics;
    return SIM_OK;
}

int32_t sim_dram_statistics(void *handle, SimDramStatistics *out) {
    if (!machine(handle)->dram.on()) return SIM_ABSENT;
    *out = machine(handle)->dram.statistics;
    return SIM_OK;
}

void sim_histogram(void *handle, uint64_t *out) { memcpy(out, machine(handle)->histogram, sizeof machine(handle)->histogram); }

void sim_clear_statistics(void *handle) {
    memset(machine(handle)->histogram, 0, sizeof machine(handle)->histogram);
    machine(handle)->dram.statistics = SimDramStatistics{};
    for (uint32_t i = 0; i < kPorts; i++) machine(handle)->ports[i].statistics = SimPortStatistics{};
}

void sim_trace_enable(void *handle, uint32_t on, uint64_t max_bytes) {
    machine(handle)->tracing = on;
    machine(handle)->trace_limit = max_bytes;
}

uint64_t sim_trace(void *handle, const uint8_t **data) {
    *data = machine(handle)->trace.data();
    return machine(handle)->trace.size();
}

uint64_t sim_trace_lost(void *handle) { return machine(handle)->trace_lost; }

void sim_trace_clear(void *handle) {
    machine(handle)->trace.clear();
    machine(handle)->trace_lost = 0;
}

uint64_t sim_error_count(void *handle) { return machine(handle)->errors.count; }

const char *sim_error(void *handle) { return machine(handle)->errors.text; }

}  // extern "C"
