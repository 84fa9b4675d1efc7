// A DDR4 channel behind the ports of a simulated machine: banks, rows, refresh, one data bus.
//
// Times are in ticks, of which a DRAM clock and a fabric cycle are whole numbers. Once a fabric cycle
// `advance` does what the controller does in it: begin a refresh, open rows for requests that wait,
// and give the data bus to those whose rows are open. Work per cycle is bounded by the ports and the
// accesses that the bus can take in it. sim/memory.py says what the parameters mean and where they
// come from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <vector>

#include "harness.h"

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
    uint32_t below(uint32_t limit) {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return static_cast<uint32_t>(((state_ * 0x2545F4914F6CDD1Dull) >> 32) * limit >> 32);
    }

  private:
    uint64_t state_;
};

class Dram {
  public:
    static constexpr uint64_t kLine = 64;  // bytes of one access: a burst of 8 on 64 data lines
    SimDramStatistics statistics{};

    void create(uint32_t ports, const SimParameters &parameters) {
        ports_ = ports;
        p_ = parameters.dram;
        latency_ = parameters.latency;
        jitter_ = parameters.jitter;
        // A port's stripe begins at a row of its own, `stagger` banks after that of the port before.
        uint64_t rows = uint64_t{p_.bank_groups} * p_.banks * p_.row_lines * kLine;
        stride_ = rows ? (parameters.port_bytes + rows - 1) / rows * rows + p_.stagger * p_.bank_groups * p_.row_lines * kLine : 0;
        seed_ = parameters.seed;
        reset();
    }

    bool on() const { return p_.ticks_per_clock != 0; }

    void reset() {
        queues_.assign(2 * ports_, Queue());
        random_.clear();
        for (uint32_t i = 0; i < ports_; i++) random_.emplace_back(seed_ * 64 + i);
        banks_.assign(p_.bank_groups * p_.banks, Bank());
        group_cas_.assign(p_.bank_groups, kNever);
        activations_.assign(4, kNever);
        last_cas_ = last_activation_ = pair_ = kNever;
        last_write_ = draining_ = false;
        oldest_ = 0;
        blocked_ = now_ = 0;
        next_refresh_ = clocks(p_.refresh_interval);
        first_ = 0;
    }

    // A burst of `bytes` from the port's byte `address` is accepted in cycle `now`.
    void request(uint32_t port, bool write, uint64_t now, uint64_t address, uint64_t bytes) {
        Queue &queue = queues_[2 * port + write];
        uint32_t extra = jitter_ ? random_[port].below(jitter_ + 1) : 0;
        for (uint64_t line = address / kLine; line <= (address + bytes - 1) / kLine; line++) {
            uint64_t place = line + stride_ / kLine * port;
            uint32_t group = place % p_.bank_groups;
            place /= p_.bank_groups * p_.row_lines;
            queue.waiting.push_back({now + latency_ / 2, place / p_.banks, static_cast<uint32_t>(place % p_.banks * p_.bank_groups + group), extra});
        }
    }

    // The oldest access of a port's reads or writes is done by cycle `now`.
    bool done(uint32_t port, bool write, uint64_t now) const {
        const Queue &queue = queues_[2 * port + write];
        return !queue.done.empty() && queue.done.front() <= now;
    }
    void pop(uint32_t port, bool write) { queues_[2 * port + write].done.pop_front(); }
    bool refreshing() const { return now_ < blocked_; }

    void advance(uint64_t cycle) {
        now_ = cycle * p_.ticks_per_cycle;
        end_ = now_ + p_.ticks_per_cycle;
        if (p_.refresh_interval && next_refresh_ < end_) refresh();
        if (now_ < blocked_) return;
        first_ = first_ + 1 == ports_ ? 0 : first_ + 1;
        for (uint32_t i = 0; i < ports_; i++) {
            uint32_t port = first_ + i < ports_ ? first_ + i : first_ + i - ports_;
            prepare(cycle, queues_[2 * port], true);
            prepare(cycle, queues_[2 * port + 1], false);
        }
        choose_direction(cycle);
        while (transfer(cycle)) {}
    }

  private:
    static constexpr int64_t kNever = INT64_MIN / 2;
    static constexpr uint64_t kClosed = UINT64_MAX;

    struct Access {
        uint64_t from;  // cycle in which the controller has it
        uint64_t row;
        uint32_t bank;
        uint32_t jitter;
    };
    struct Queue {
        std::deque<Access> waiting;   // in order; the first `prepared` have their rows open
        std::deque<uint64_t> done;    // cycle in which the port has it
        uint32_t prepared = 0;
    };
    struct Bank {
        uint64_t row = kClosed;
        int64_t ready = kNever;       // its row takes column commands from here
        int64_t close = kNever;       // it may be precharged from here
        int64_t open = kNever;        // it may be activated from here
        uint32_t pending = 0;         // prepared accesses
        uint32_t hits = 0;            // since the row was opened
        bool wanted = false;          // somebody waits for another row
    };

    int64_t clocks(uint64_t n) const { return static_cast<int64_t>(n * p_.ticks_per_clock); }

    // All rows are closed, and nothing goes until the refresh is over.
    void refresh() {
        int64_t start = std::max<int64_t>(now_, next_refresh_);
        blocked_ = start + clocks(p_.precharge + p_.refresh);
        next_refresh_ += clocks(p_.refresh_interval);
        for (Bank &bank : banks_) {
            bank.row = kClosed;
            bank.open = blocked_;
            bank.pending = 0;
            bank.wanted = false;
        }
        for (Queue &queue : queues_) queue.prepared = 0;
        statistics.refreshes++;
    }

    void prepare(uint64_t cycle, Queue &queue, bool buffered) {
        while (queue.prepared < p_.window && queue.prepared < queue.waiting.size()) {
            if (buffered && queue.done.size() + queue.prepared >= p_.buffer_lines) return;
            const Access &access = queue.waiting[queue.prepared];
            if (access.from > cycle || !open_row(banks_[access.bank], access)) return;
            banks_[access.bank].pending++;
            queue.prepared++;
        }
    }

    // Whether the access finds its row open; if not, work towards that.
    bool open_row(Bank &bank, const Access &access) {
        if (bank.row == access.row) {
            if (bank.wanted && bank.hits >= p_.hit_limit) return false;
            bank.hits++;
            return true;
        }
        if (bank.row != kClosed) {
            bank.wanted = true;
            if (bank.pending || bank.close >= end_) return false;
            bank.row = kClosed;
            bank.open = std::max(bank.open, std::max(bank.close, now_) + clocks(p_.precharge));
            statistics.conflicts++;
        }
        int64_t at = std::max({bank.open, now_, last_activation_ + clocks(p_.activate_gap), activations_[oldest_] + clocks(p_.four_activates)});
        if (at >= end_) return false;
        last_activation_ = activations_[oldest_] = at;
        oldest_ = (oldest_ + 1) % 4;
        bank.row = access.row;
        bank.ready = at + clocks(p_.activate);
        bank.close = at + clocks(p_.row_open);
        bank.open = at + clocks(p_.row_cycle);
        bank.hits = 1;
        bank.wanted = false;
        statistics.activates++;
        return true;
    }

    // Give the data bus to the access that can have it first. Reads go before writes, until a write has waited long.
    bool transfer(uint64_t cycle) {
        int64_t best = INT64_MAX;
        uint32_t chosen = 0;
        if (!draining_) candidates(false, best, chosen);
        if (best >= end_) candidates(true, best, chosen);
        if (best >= end_) return false;
        bool write = chosen & 1;
        Queue &queue = queues_[chosen];
        Access access = queue.waiting.front();
        queue.waiting.pop_front();
        queue.prepared--;
        Bank &bank = banks_[access.bank];
        bank.pending--;
        bank.close = std::max(bank.close, best + clocks(write ? p_.write_to_close : p_.read_to_close));
        group_cas_[access.bank % p_.bank_groups] = last_cas_ = best;
        last_write_ = write;
        int64_t over = best + clocks((write ? p_.write_latency : p_.read_latency) + 4);
        if (!write && paired(chosen / 2)) over = pair_ = std::max(over, pair_ + clocks(p_.pair_gap));
        uint64_t at = (over + p_.ticks_per_cycle - 1) / p_.ticks_per_cycle + (latency_ - latency_ / 2) + access.jitter;
        queue.done.push_back(queue.done.empty() ? at : std::max(at, queue.done.back()));
        (write ? statistics.writes : statistics.reads)++;
        first_ = chosen / 2 + 1 < ports_ ? chosen / 2 + 1 : 0;
        return true;
    }

    void candidates(bool write, int64_t &best, uint32_t &chosen) const {
        for (uint32_t i = 0; i < ports_; i++) {
            uint32_t port = first_ + i < ports_ ? first_ + i : first_ + i - ports_;
            const Queue &queue = queues_[2 * port + write];
            if (!queue.prepared) continue;
            uint32_t bank = queue.waiting.front().bank, group = bank % p_.bank_groups;
            int64_t at = std::max({now_, banks_[bank].ready, last_cas_ + clocks(p_.column_gap), group_cas_[group] + clocks(p_.column_gap_group)});
            if (write != last_write_) at = std::max(at, last_cas_ + clocks(write ? p_.read_to_write : p_.write_to_read));
            if (at < best) best = at, chosen = 2 * port + write;
        }
    }

    // Writes that waited long go first until none of them has its row open.
    void choose_direction(uint64_t cycle) {
        bool any = false;
        for (uint32_t port = 0; port < ports_; port++) {
            const Queue &queue = queues_[2 * port + 1];
            if (!queue.prepared) continue;
            any = true;
            draining_ |= queue.waiting.front().from + p_.write_wait <= cycle;
        }
        draining_ &= any;
    }

    // The two middle ones of four ports share a way out of the controller.
    bool paired(uint32_t port) const { return p_.pair_gap && ports_ == 4 && (port == 1 || port == 2); }

    uint32_t ports_ = 0, latency_ = 0, jitter_ = 0, first_ = 0, oldest_ = 0;
    uint64_t stride_ = 0, seed_ = 0;
    SimDramParameters p_{};
    std::vector<Queue> queues_;  // reads and writes of each port
    std::vector<Bank> banks_;
    std::vector<Random> random_;
    std::vector<int64_t> group_cas_, activations_;
    int64_t last_cas_ = kNever, last_activation_ = kNever, pair_ = kNever;
    int64_t now_ = 0, end_ = 0, blocked_ = 0, next_refresh_ = 0;
    bool last_write_ = false, draining_ = false;
};
