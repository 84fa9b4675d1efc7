// A whole board at its pins: the outermost module, its SDRAM (sdram.h), and the other end of its UART.
//
// The clock that comes in is the machine's (sim/cells/ has a PLL that does nothing). Bytes for the board are queued here and go onto its
// pin bit by bit; what it sends is read off its other pin in the middle of every bit.

#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <string>

#include "Vtop.h"
#include "ports.h"
#include "sdram.h"
#include "verilated.h"

double sc_time_stamp() { return 0; }

namespace {

struct Parameters {
    uint64_t seed;
    uint32_t bit_cycles_256;  // length of a bit, in 1/256 of a cycle
    uint32_t reset_level;
    SdramTiming sdram;  // width 0: there is none
};

// One direction's bit times: cycles in 1/256 are counted down.
struct Sender {
    std::deque<uint8_t> queue;
    uint32_t frame = 0, bits = 0, level = 1;
    int64_t left = 0;

    void step(uint32_t bit) {
        left -= 256;
        if (left > 0) return;
        if (!bits) {
            if (queue.empty()) {
                left = 0;
                return;
            }
            frame = uint32_t(queue.front()) << 1 | 0x200;
            queue.pop_front();
            bits = 10;
        }
        level = frame & 1;
        frame >>= 1;
        bits--;
        left += bit;
    }
};

struct Receiver {
    std::deque<uint8_t> queue;
    uint32_t frame = 0, bits = 0, framing_errors = 0;
    int64_t left = 0;

    void step(uint32_t bit, uint32_t level) {
        if (!bits) {
            if (level) return;
            bits = 10;
            left = bit / 2;
            frame = 0;
        }
        left -= 256;
        if (left > 0) return;
        left += bit;
        frame |= level << (10 - bits);
        if (--bits) {
            if (bits == 9 && level) bits = 0;  // no start bit after all
            return;
        }
        if (level) queue.push_back(uint8_t(frame >> 1));
        else framing_errors++;
    }
};

struct Board {
    Parameters p;
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    std::unique_ptr<Sdram> sdram;
    Sender sender;
    Receiver receiver;
    uint64_t cycles = 0;
    uint32_t pressed = 0, connected = 1;

    explicit Board(const Parameters &parameters) : p(parameters) {
        context.randReset(0);
        top.reset(new Vtop(&context, "board"));
        if (p.sdram.width) sdram.reset(new Sdram(p.sdram, p.seed));
        top->clock = 0;
        top->reset = !p.reset_level;
        top->uart_rx = 1;
        top->eval();
    }

    void cycle() {
        sender.step(p.bit_cycles_256);
        top->uart_rx = connected ? sender.level : 1;
        top->reset = pressed ? p.reset_level : !p.reset_level;
        top->clock = 1;
        top->eval();
        top->clock = 0;
        top->eval();
#if HAS_SDRAM
        // The SDRAM's clock is the inverted one: it rises now, and what is taken at this falling edge came before.
        Vtop *pins = top.get();
        SdramOutput out = sdram->step(sdram_cke(pins), sdram_cs_n(pins), pins->sdram_ras_n, pins->sdram_cas_n, pins->sdram_we_n, pins->sdram_ba,
                                      pins->sdram_a, sdram_dqm(pins), pins->sdram_dq__out, pins->sdram_dq__en != 0);
        top->sdram_dq = out.driving ? out.dq : top->sdram_dq__en ? top->sdram_dq__out : ~0u;
#endif
        receiver.step(p.bit_cycles_256, connected ? top->uart_tx : 1);
        cycles++;
    }
};

}  // namespace

extern "C" {

void *board_create(const Parameters *parameters) { return new Board(*parameters); }
void board_destroy(void *handle) { delete static_cast<Board *>(handle); }

// Run until something the board sent waits, if `until_sent`, or `most` cycles are over. Returns the cycles.
uint64_t board_run(void *handle, uint64_t most, uint32_t until_sent) {
    Board &b = *static_cast<Board *>(handle);
    uint64_t done = 0;
    while (done < most && !(until_sent && !b.receiver.queue.empty())) b.cycle(), done++;
    return done;
}

void board_send(void *handle, const uint8_t *bytes, uint64_t count) {
    Board &b = *static_cast<Board *>(handle);
    b.sender.queue.insert(b.sender.queue.end(), bytes, bytes + count);
}

uint64_t board_unsent(void *handle) { return static_cast<Board *>(handle)->sender.queue.size(); }

uint64_t board_receive(void *handle, uint8_t *bytes, uint64_t most) {
    std::deque<uint8_t> &queue = static_cast<Board *>(handle)->receiver.queue;
    uint64_t count = std::min<uint64_t>(most, queue.size());
    std::copy(queue.begin(), queue.begin() + count, bytes);
    queue.erase(queue.begin(), queue.begin() + count);
    return count;
}

// The button held down or let go; the cable plugged in or out (what is on its way is lost).
void board_press(void *handle, uint32_t pressed) { static_cast<Board *>(handle)->pressed = pressed; }
void board_connect(void *handle, uint32_t connected) {
    Board &b = *static_cast<Board *>(handle);
    b.connected = connected;
    b.sender.queue.clear();
    b.receiver.queue.clear();
}

uint64_t board_cycles(void *handle) { return static_cast<Board *>(handle)->cycles; }
uint32_t board_leds(void *handle) { return leds(static_cast<Board *>(handle)->top.get()); }
uint32_t board_framing_errors(void *handle) { return static_cast<Board *>(handle)->receiver.framing_errors; }

// The SDRAM: its bytes, null if there is none; the first violation of its timing, "" if there is none.
uint8_t *board_memory(void *handle, uint64_t *size) {
    Board &b = *static_cast<Board *>(handle);
    *size = b.sdram ? b.sdram->size() : 0;
    return b.sdram ? b.sdram->bytes() : nullptr;
}
const char *board_violation(void *handle) {
    Board &b = *static_cast<Board *>(handle);
    return b.sdram ? b.sdram->violation().c_str() : "";
}

}  // extern "C"
