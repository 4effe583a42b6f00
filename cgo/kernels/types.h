// types.h: blocks of the quantised types.

#ifndef LESSKV_TYPES_H
#define LESSKV_TYPES_H

#include <stdint.h>

struct block_q4_0 {
    uint16_t d;     // f16 scale
    uint8_t  q[16]; // element i + 8 in the low half of q[i], element 16 + i + 8 in the high one
};

struct block_q8_0 {
    uint16_t d; // f16 scale
    int8_t   q[32];
};

#endif
