// lesskv-grammar.h: an end to what a grammar computes. Grammars come from requests, and 30 bytes of one can ask for more memory, or
// more time for a token, than there is. llama.cpp's code for them says what it is about to do (the hooks); this counts.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

struct lesskv_grammar_error : std::runtime_error {
    bool interrupted; // by the caller, and not too much
    lesskv_grammar_error(const char * why, bool interrupted) : std::runtime_error(why), interrupted(interrupted) {}
};

// What this thread's grammar does while this lives is counted, from 0. The hooks throw lesskv_grammar_error past the limits, and as soon
// as interrupted is true. Where none lives they only refuse what cannot be right.
class lesskv_grammar_work {
public:
    explicit lesskv_grammar_work(const std::atomic<bool> & interrupted);
    ~lesskv_grammar_work();
    lesskv_grammar_work(const lesskv_grammar_work &) = delete;
    lesskv_grammar_work & operator=(const lesskv_grammar_work &) = delete;

    void count(uint64_t more_steps, uint64_t more_bytes);
private:
    const std::atomic<bool> & interrupted;
    lesskv_grammar_work * outer;
    uint64_t steps = 0, bytes = 0;
};

// The hooks.

// A repetition of `size` elements, max UINT64_MAX for any number of times.
void lesskv_grammar_repeat(uint64_t min, uint64_t max, size_t size);

// A rule of the parser's own, whose name begins with one of `size` bytes.
void lesskv_grammar_rule(size_t size);

// While it lives: one call, of those that call themselves, that looks at `size` elements or candidates, beside `others` stacks that it
// may have to compare.
class lesskv_grammar_call {
public:
    explicit lesskv_grammar_call(size_t size, size_t others = 0);
    ~lesskv_grammar_call();
    lesskv_grammar_call(const lesskv_grammar_call &) = delete;
    lesskv_grammar_call & operator=(const lesskv_grammar_call &) = delete;
};

// As many stacks of about `size` elements are held.
void lesskv_grammar_hold(size_t size, size_t stacks);
