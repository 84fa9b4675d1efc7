// An SDR SDRAM at its pins: holds data, and checks every command against the data sheet's times.
//
// `step` is called once at each rising edge of the SDRAM's clock, with the pins as they are just before that edge; what it returns
// stands at the data pins from after this edge until after the next. So with CAS latency 2, READ at step 0 returns its first word
// at step 1, and the controller samples it at the edge of step 2.
//
// Byte addresses run through a row's columns, then through the banks, then through the rows. Contents are random before they are
// written. The first violation is kept as text with the step and the command; the device goes on as well as it can.
//
// Bursts are sequential, of 1, 2, 4 or 8 words, for reads and writes, and end by themselves: auto precharge, burst terminate, single
// writes, self refresh, and whatever cuts a burst short are violations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

// All times are in cycles, and names are the data sheets'.
struct SdramTiming {
    uint32_t width, row_bits, column_bits, bank_bits;
    uint32_t rcd, rp, ras, rc, rrd, rfc, wr, mrd;  // wr: from the last word written to PRECHARGE
    uint32_t refi;       // between refreshes, on average
    uint32_t start;      // NOP or DESELECT with CKE high before the first command
    uint32_t refreshes;  // before the first ACTIVE
    uint32_t cas_min;    // least CAS latency at this clock
    uint32_t ras_max;    // a row stays open no longer
    uint32_t postponed;  // refreshes that may be owed, and done ahead
};

struct SdramOutput {
    uint32_t dq;
    bool driving;
};

class Sdram {
public:
    explicit Sdram(const SdramTiming &timing, uint64_t seed = 1)
        : t_(timing), random_(seed * 0x9E3779B97F4A7C15ull | 1), banks_(1u << timing.bank_bits),
          data_(size_t(timing.width / 8) << (timing.row_bits + timing.column_bits + timing.bank_bits)) {
        for (size_t at = 0; at < data_.size(); at += 4) {
            uint32_t word = garbage();
            for (size_t byte = 0; byte < 4; byte++) data_[at + byte] = uint8_t(word >> (8 * byte));
        }
    }

    SdramOutput step(bool cke, bool cs_n, bool ras_n, bool cas_n, bool we_n, uint32_t ba, uint32_t a, uint32_t dqm, uint32_t dq_in, bool dq_oe) {
        now_++;
        command_ = cs_n ? DESELECT : ras_n << 2 | cas_n << 1 | we_n;
        bool quiet = command_ >= NOP;
        if (dq_oe && drove_[0]) fail("bus contention: controller and device drive DQ");
        else if (dq_oe && drove_[1]) fail("bus contention: no cycle between the device's last word and the controller's first");
        clock_enable(cke, quiet);
        if (cke && cke_before_ && !quiet) run(ba, a);
        cke_before_ = cke;
        if (ready_ && ++owed_ > int64_t(t_.postponed + 1) * t_.refi) fail("tREFI: too few refreshes"), owed_ = 0;
        if (write_left_) take(dqm, dq_in, dq_oe);
        return give(dqm);
    }

    uint8_t *bytes() { return data_.data(); }
    size_t size() const { return data_.size(); }
    const std::string &violation() const { return violation_; }  // empty while there is none
    uint64_t steps() const { return now_; }
    uint64_t refreshed() const { return refreshed_; }
    bool initialised() const { return ready_; }

private:
    enum { MODE, REFRESH, PRECHARGE, ACTIVE, WRITE, READ, TERMINATE, NOP, DESELECT };
    static constexpr int64_t LONG_AGO = -(1ll << 40);
    struct Bank {
        bool open = false;
        uint32_t row = 0;
        int64_t activated = LONG_AGO, precharged = LONG_AGO, read_end = LONG_AGO, written = LONG_AGO;
    };

    void fail(const std::string &what) {
        if (!violation_.empty()) return;
        static const char *const names[] = {"MODE", "REFRESH", "PRECHARGE", "ACTIVE", "WRITE", "READ", "TERMINATE", "NOP", "DESELECT"};
        violation_ = what + " (" + names[command_] + " at step " + std::to_string(now_) + ")";
    }

    void least(const char *name, int64_t since, uint32_t cycles) {
        if (now_ - since < int64_t(cycles))
            fail(std::string(name) + ": " + std::to_string(now_ - since) + " cycles, not " + std::to_string(cycles));
    }

    void clock_enable(bool cke, bool quiet) {
        bool busy = write_left_ || read_left_ || pipe_;
        if (!cke && !quiet) fail("command with CKE low");
        if (cke && !cke_before_ && !quiet) fail("command in the cycle in which CKE rises");
        if (!cke && cke_before_ && busy) fail("CKE falls in a burst");
        if (!cke && !started_) waited_ = 0;
        if (cke && !started_) waited_++;
    }

    void run(uint32_t ba, uint32_t a) {
        if (!started_) {
            if (waited_ <= t_.start) fail("initialisation: the first command after " + std::to_string(waited_ - 1) + " cycles, not " + std::to_string(t_.start));
            if (command_ != PRECHARGE || !(a >> 10 & 1)) fail("initialisation: the first command must precharge all banks");
            started_ = true;
        }
        Bank &bank = banks_[ba & (banks_.size() - 1)];
        if (command_ != PRECHARGE) {
            least("tMRD", mode_set_, t_.mrd);
            least("tRFC", refresh_, t_.rfc);
        }
        switch (command_) {
        case MODE: set_mode(a); break;
        case REFRESH: idle(); refresh(); break;
        case PRECHARGE:
            least("tRFC", refresh_, t_.rfc);
            least("tMRD", mode_set_, t_.mrd);
            if (a >> 10 & 1) for (Bank &each : banks_) precharge(each);
            else precharge(bank);
            break;
        case ACTIVE: activate(bank, a); break;
        case READ: case WRITE: column(bank, ba & uint32_t(banks_.size() - 1), a); break;
        default: fail("burst terminate is not used");
        }
    }

    void idle() {
        for (const Bank &bank : banks_) {
            if (bank.open) fail("a bank is open");
            least("tRP", bank.precharged, t_.rp);
        }
    }

    void set_mode(uint32_t a) {
        idle();
        uint32_t code = a & 7, cas = a >> 4 & 7;
        if (code > 3 || a >> 3) {
            if (code > 3 || (a >> 3 & 1)) fail("mode register: bursts must be sequential, of 1, 2, 4 or 8 words");
            if (a >> 7) fail("mode register: reserved bits, or single writes");
        }
        if ((cas != 2 && cas != 3) || cas < t_.cas_min) fail("mode register: CAS latency " + std::to_string(cas));
        burst_ = 1u << (code & 3);
        cas_ = cas == 3 ? 3 : 2;
        mode_set_ = now_;
        mode_known_ = true;
    }

    void refresh() {
        refresh_ = now_;
        refreshed_++;
        owed_ = std::max(owed_ - int64_t(t_.refi), -int64_t(t_.postponed) * t_.refi);
    }

    void precharge(Bank &bank) {
        if (bank.open) least("tRAS", bank.activated, t_.ras);
        if (bank.open && now_ - bank.activated > int64_t(t_.ras_max)) fail("tRAS: the row was open for too long");
        least("tWR", bank.written, t_.wr);
        if (now_ < bank.read_end) fail("burst cut short: precharge of a bank that is read");
        if (bank.open) bank.precharged = now_;
        bank.open = false;
    }

    void activate(Bank &bank, uint32_t row) {
        if (!ready_ && mode_known_ && refreshed_ < t_.refreshes) fail("initialisation: " + std::to_string(refreshed_) + " refreshes, not " + std::to_string(t_.refreshes));
        if (!mode_known_) fail("initialisation: the mode register is not set");
        if (!ready_) ready_ = true, owed_ = 0;
        if (bank.open) fail("ACTIVE of an open bank");
        least("tRP", bank.precharged, t_.rp);
        least("tRC", bank.activated, t_.rc);
        for (const Bank &other : banks_)
            if (&other != &bank) least("tRRD", other.activated, t_.rrd);
        bank.open = true;
        bank.row = row & ((1u << t_.row_bits) - 1);
        bank.activated = now_;
    }

    void column(Bank &bank, uint32_t index, uint32_t a) {
        if (!bank.open) fail("the bank is closed");
        least("tRCD", bank.activated, t_.rcd);
        if (a >> 10 & 1) fail("auto precharge is not used");
        if (read_left_ || write_left_) fail("burst cut short by another");
        write_left_ = read_left_ = 0;
        column_ = a & ((1u << t_.column_bits) - 1);
        page_ = (size_t(bank.row) << t_.bank_bits | index) << t_.column_bits;
        writing_ = &bank;
        if (command_ == WRITE) write_left_ = burst_;
        else read_left_ = burst_, bank.read_end = now_ + burst_;
    }

    // Where the burst's next word lies; bursts wrap within themselves.
    size_t place() {
        size_t word = page_ | column_;
        column_ = (column_ & ~(burst_ - 1)) | ((column_ + 1) & (burst_ - 1));
        return word * (t_.width / 8);
    }

    void take(uint32_t dqm, uint32_t dq_in, bool dq_oe) {
        size_t at = place();
        for (uint32_t byte = 0; byte < t_.width / 8; byte++)
            if (!(dqm >> byte & 1)) {
                if (!dq_oe) fail("nobody drives a word that is written");
                data_[at + byte] = uint8_t(dq_in >> (8 * byte));
            }
        write_left_--;
        writing_->written = now_;
    }

    // Words enter a pipe when they are read and leave it `cas_ - 1` steps later; DQM two cycles before a word's edge hides it.
    SdramOutput give(uint32_t dqm) {
        pipe_ <<= 1;
        for (uint32_t i = 3; i > 0; i--) words_[i] = words_[i - 1];
        if (read_left_) {
            size_t at = place();
            words_[0] = 0;
            for (uint32_t byte = 0; byte < t_.width / 8; byte++) words_[0] |= uint32_t(data_[at + byte]) << (8 * byte);
            pipe_ |= 1;
            read_left_--;
        }
        pipe_ &= 15;
        uint32_t hidden = dqm_before_;
        dqm_before_ = dqm;
        bool driving = pipe_ >> (cas_ - 1) & 1;
        uint32_t noise = garbage(), dq = driving ? words_[cas_ - 1] : noise;
        if (driving)
            for (uint32_t byte = 0; byte < t_.width / 8; byte++)
                if (hidden >> byte & 1) dq = (dq & ~(255u << (8 * byte))) | (noise & 255u << (8 * byte));
        if (t_.width < 32) dq &= (1u << t_.width) - 1;
        drove_[1] = drove_[0];
        drove_[0] = driving;
        return {dq, driving};
    }

    uint32_t garbage() {
        random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
        return uint32_t(random_ >> 16);
    }

    SdramTiming t_;
    uint64_t random_;
    std::vector<Bank> banks_;
    std::vector<uint8_t> data_;
    std::string violation_;
    int64_t now_ = 0, waited_ = 0, owed_ = 0, refresh_ = LONG_AGO, mode_set_ = LONG_AGO;
    uint64_t refreshed_ = 0;
    int command_ = DESELECT;
    bool cke_before_ = false, started_ = false, mode_known_ = false, ready_ = false, drove_[2] = {false, false};
    uint32_t burst_ = 1, cas_ = 2, column_ = 0, read_left_ = 0, write_left_ = 0, pipe_ = 0, words_[4] = {}, dqm_before_ = 0;
    size_t page_ = 0;
    Bank *writing_ = nullptr;
};
