// Comes before harness.cpp in a machine that writes its waves: its top module dumps what has changed after every evaluation.
//
// Cycle n begins at n ns, with the clock low and the cycle's inputs and outputs settled; half a ns later the registers have taken them.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "Vtop.h"
#include "verilated.h"
#include "verilated_vcd_c.h"

namespace {
class WavedTop;
}

// A file of waves; mirrors sim/waves.py.
struct SimWaves {
    int32_t file;    // descriptor of the empty file
    int32_t error;   // errno of the write that failed; nothing is written after it
    uint64_t bytes;  // written
    uint64_t cycles;
    WavedTop *top;   // whose waves they are, while it writes
};

namespace {

constexpr uint64_t kHalfCycle = 500;  // ps

SimWaves *waves_of_next = nullptr;
std::mutex waves_lock;  // waves may be closed while another thread runs the machine

// Verilator's own file ends the process on an error.
class WavesFile : public VerilatedVcdFile {
  public:
    explicit WavesFile(SimWaves *waves) : waves_(waves) {}
    bool open(const std::string &) override { return true; }
    void close() override {}
    ssize_t write(const char *text, ssize_t length) override {
        for (ssize_t done = 0; done < length && !waves_->error;) {
            ssize_t written = ::write(waves_->file, text + done, length - done);
            if (written > 0) {
                done += written;
                waves_->bytes += written;
            } else if (errno != EINTR) {
                waves_->error = errno;
            }
        }
        if (waves_->error) {
            if (!ftruncate(waves_->file, whole_)) waves_->bytes = whole_;
        } else if (const void *end = memrchr(text, '\n', length)) {
            whole_ = waves_->bytes - length + (static_cast<const char *>(end) - text) + 1;
        }
        return length;
    }

  private:
    SimWaves *waves_;
    uint64_t whole_ = 0;  // bytes up to the end of the last whole line
};

class WavedTop : public Vtop {
  public:
    WavedTop(VerilatedContext *context, const char *name)
        : Vtop((context->traceEverOn(true), context), name), waves_(waves_of_next), file_(waves_of_next), dump_(&file_) {
        waves_of_next = nullptr;
        if (!waves_) return;
        trace(&dump_, 99);
        dump_.open("");
        waves_->top = this;
    }

    ~WavedTop() {
        std::lock_guard<std::mutex> lock(waves_lock);
        close_waves();
    }

    void eval() {
        Vtop::eval();
        std::lock_guard<std::mutex> lock(waves_lock);
        if (!waves_) return;
        dump_.dump(kHalfCycle * halves_++);
        waves_->cycles = halves_ / 2;
    }

    void close_waves() {
        if (!waves_) return;
        dump_.close();
        waves_->top = nullptr;
        waves_ = nullptr;
    }

  private:
    SimWaves *waves_;
    WavesFile file_;
    VerilatedVcdC dump_;
    uint64_t halves_ = 0;
};

}  // namespace

extern "C" {

// Waves of the machine that is created next.
void sim_waves(SimWaves *waves) { waves_of_next = waves; }

void sim_waves_close(SimWaves *waves) {
    std::lock_guard<std::mutex> lock(waves_lock);
    if (waves->top) waves->top->close_waves();
}

}  // extern "C"

#define Vtop WavedTop
