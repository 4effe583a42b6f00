// wire.cpp: the worker's end of its pipe. Whatever comes in is requests, each taken apart or refused, until the input ends; what was
// read of one is escaped as it was meant, and its getters take any text.

#include "harness.h"

#include "worker_wire.h"

extern "C" int LLVMFuzzerInitialize(int *, char ***) { return 0; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (size == 0) {
        return 0; // fmemopen takes no empty buffer
    }
    FILE * in = fmemopen(const_cast<uint8_t *>(data), size, "rb");
    HOLDS(in);
    for (;;) {
        const long before = ftell(in);
        wire::request req;
        try {
            if (!wire::receive(in, req)) {
                break;
            }
            HOLDS(!req.verb.empty() && req.verb.find(' ') == std::string::npos);
            HOLDS(req.payload.size() < size);
            for (const auto & a : req.args) {
                HOLDS(wire::unescape(wire::escape(a.second)) == a.second);
            }
            const auto args = req.args;
            for (const auto & a : args) {
                if (a.first.find(char(0)) != std::string::npos) {
                    continue; // done() is left to refuse it
                }
                wire::request one = req;
                HOLDS(one.text(a.first.c_str()) == a.second && !one.has(a.first.c_str()));
                for (const int what : { 0, 1, 2 }) {
                    try {
                        one = req;
                        switch (what) {
                            case 0: { const int64_t n = one.integer(a.first.c_str(), -5, 1000); HOLDS(n >= -5 && n <= 1000); break; }
                            case 1: one.real(a.first.c_str(), 0.0f); break;
                            case 2: one.flag(a.first.c_str(), false); break;
                        }
                    } catch (const wire::failure &) {
                    }
                }
            }
            const size_t bytes = req.payload.size();
            HOLDS(req.integers().size()*sizeof(int32_t) == bytes && req.payload.empty());
            req.done();
        } catch (const wire::failure & e) {
            HOLDS(e.what()[0] != '\0');
        }
        HOLDS(ftell(in) > before); // the next request is another
    }
    fclose(in);
    return 0;
}
