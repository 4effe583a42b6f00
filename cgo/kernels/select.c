// select.c: the smallest keys, and keys in order. Both take the same number of steps for any keys of one length, or
// nearly so: there is no bad case.

#include "internal.h"

// One byte at a time from the highest: count the keys that agree with what is known so far by their next byte, and see
// into which count the k-th falls.
uint64_t lesskv_select(const uint64_t * key, int32_t n, int32_t k) {
    if (k == 1) { // decoding
        uint64_t min = key[0];
        for (int32_t i = 1; i < n; i++) {
            min = key[i] < min ? key[i] : min;
        }
        return min;
    }
    uint64_t known = 0, mask = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        int32_t count[256] = {0};
        for (int32_t i = 0; i < n; i++) {
            count[key[i] >> shift & 255] += (key[i] & mask) == known;
        }
        uint64_t byte = 0;
        while (k > count[byte]) {
            k -= count[byte++];
        }
        known |= byte << shift;
        mask  |= (uint64_t) 255 << shift;
    }
    return known;
}

// Heapsort.
void lesskv_sort(uint64_t * key, int32_t n) {
    int32_t heap = n, root = n / 2;
    while (heap > 1) {
        uint64_t x;
        if (root > 0) {
            x = key[--root]; // the heap grows downwards to the front
        } else {
            x = key[--heap]; // then its top goes behind it, time after time
            key[heap] = key[0];
        }
        int32_t at = root;
        for (int32_t child; (child = 2 * at + 1) < heap; at = child) {
            child += child + 1 < heap && key[child] < key[child + 1];
            if (x >= key[child]) {
                break;
            }
            key[at] = key[child];
        }
        key[at] = x;
    }
}
