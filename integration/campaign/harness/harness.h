// harness.h: what the libFuzzer harnesses of this folder share.
//
// A saved cache, a state or an adapter holds fingerprints, sizes and offsets that no fuzzer guesses. So an input is not the file
// itself but what is changed in a good one: edits, each
//
//     at (u16, little-endian), cut (u8), n (u8), n bytes        at position at, cut bytes are replaced by n
//
// one after another; what is left when no edit fits is appended. No input at all is the good file, which must be read.

#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A property that does not hold. assert would go with NDEBUG.
#define HOLDS(x) ((x) ? (void) 0 : (fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #x), abort()))

// base with the edits of data, in fresh memory of exactly its size, that the caller frees.
static uint8_t * edited(const uint8_t * base, size_t n_base, const uint8_t * data, size_t size, size_t * n_out) {
    uint8_t * out = (uint8_t *) malloc(n_base + size + 1);
    HOLDS(out);
    memcpy(out, base, n_base);
    size_t n = n_base;
    while (size >= 4 && size >= 4u + data[3]) {
        size_t at = data[0] | data[1] << 8, cut = data[2], put = data[3];
        at  = at < n ? at : n;
        cut = cut < n - at ? cut : n - at;
        memmove(out + at + put, out + at + cut, n - at - cut);
        memcpy(out + at, data + 4, put);
        n    += put - cut;
        data += 4 + put;
        size -= 4 + put;
    }
    if (size > 0) {
        memcpy(out + n, data, size);
    }
    n += size;
    uint8_t * exact = (uint8_t *) malloc(n ? n : 1); // its end is where the address sanitizer looks
    HOLDS(exact);
    memcpy(exact, out, n);
    free(out);
    *n_out = n;
    return exact;
}
