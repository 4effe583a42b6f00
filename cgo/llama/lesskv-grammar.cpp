#include "lesskv-grammar.h"

// Far above what grammars need that are meant to be used: a JSON schema of 100 KB is parsed into 2 MB, and takes some 100,000 steps
// for a token.
static const uint64_t MOST_BYTES    = 64 << 20;      // of one grammar, parsed
static const uint64_t MOST_STEPS    = 200000000;     // for one token
static const uint64_t MOST_ELEMENTS = 4 << 20;       // of the stacks, which are what may come next
static const int      MOST_CALLS    = 5000;          // of a function by itself

static thread_local lesskv_grammar_work * current = nullptr;
static thread_local int calls = 0;

lesskv_grammar_work::lesskv_grammar_work(const std::atomic<bool> & interrupted) : interrupted(interrupted), outer(current) { current = this; }

lesskv_grammar_work::~lesskv_grammar_work() { current = outer; }

void lesskv_grammar_work::count(uint64_t more_steps, uint64_t more_bytes) {
    if (interrupted) {
        throw lesskv_grammar_error("interrupted", true);
    }
    if ((bytes += more_bytes) > MOST_BYTES) {
        throw lesskv_grammar_error("its rules and repetitions take more than 64 MiB", false);
    }
    if (more_steps > MOST_STEPS || (steps += more_steps) > MOST_STEPS) {
        throw lesskv_grammar_error("it is too ambiguous: what may come next takes more than 200000000 steps for a token", false);
    }
}

static void count(uint64_t steps, uint64_t bytes) {
    if (current) {
        current->count(steps, bytes);
    }
}

void lesskv_grammar_repeat(uint64_t min, uint64_t max, size_t size) {
    if (max < min) {
        throw lesskv_grammar_error("a repetition has a largest number below its smallest", false);
    }
    // each time is a copy, and each that may be left out a rule with its name
    const uint64_t times = max == UINT64_MAX ? min + 1 : max;
    count(times, times > MOST_STEPS ? 0 : times*(size + 2)*8);
}

void lesskv_grammar_rule(size_t size) { count(1, size + 64); }

lesskv_grammar_call::lesskv_grammar_call(size_t size, size_t others) {
    if (calls >= MOST_CALLS) {
        throw lesskv_grammar_error("it is looked into more than 5000 calls deep", false);
    }
    if ((uint64_t) size*others > MOST_ELEMENTS) {
        throw lesskv_grammar_error("it is too ambiguous: too much may come next", false);
    }
    count(1 + size + others, 0);
    ++calls;
}

lesskv_grammar_call::~lesskv_grammar_call() { --calls; }

void lesskv_grammar_hold(size_t size, size_t stacks) {
    if ((uint64_t) (size + 16)*stacks > MOST_ELEMENTS) { // with what a set takes for one
        throw lesskv_grammar_error("it is too ambiguous: too much may come next", false);
    }
}
