// The pages of a mapped model file.

#include "lesskv-hooks.h"

#include <cstdint>

#include <sys/mman.h>
#include <unistd.h>

void lesskv_release_mapped(const void * data, size_t size) {
    const long page = sysconf(_SC_PAGESIZE);
    if (page <= 0) {
        return;
    }
    // Whole pages only: the tensors beside it have the others.
    const uintptr_t mask  = uintptr_t(page) - 1;
    const uintptr_t begin = ((uintptr_t) data + mask) & ~mask;
    const uintptr_t end   = ((uintptr_t) data + size) & ~mask;
    if (begin < end) {
        // Refused of locked pages, which are to stay.
        (void) madvise((void *) begin, end - begin, MADV_DONTNEED);
    }
}
