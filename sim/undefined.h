// Comes before harness.cpp in a machine whose registers and memories begin with random values: its context draws them.
#pragma once

#include "Vtop.h"
#include "verilated.h"

namespace {
int undefined_seed = 1;

class RandomContext : public VerilatedContext {
  public:
    RandomContext() {
        randReset(2);
        randSeed(undefined_seed);
    }
};
}  // namespace

// Of the machines created from now on; not 0.
extern "C" void sim_undefined_seed(int seed) { undefined_seed = seed; }

#define VerilatedContext RandomContext
