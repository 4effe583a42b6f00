// malloc.c: what the sources of the LESS cache call instead of malloc in a worker that a test builds. The file $LESSKV_FAILING holds
// an int32: below 0 nothing fails; else so many allocations succeed, and the next one does not.

#include <stdint.h>
#include <stdlib.h>

#include <fcntl.h>
#include <unistd.h>

void * lesskv_failing_malloc(size_t size);

void * lesskv_failing_malloc(size_t size) {
    static int fd = -1;
    if (fd < 0) {
        const char * path = getenv("LESSKV_FAILING");
        fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd < 0) {
            abort();
        }
    }
    int32_t left;
    if (pread(fd, &left, sizeof left, 0) != sizeof left) {
        abort();
    }
    if (left >= 0) {
        const int32_t fewer = left - 1;
        if (pwrite(fd, &fewer, sizeof fewer, 0) != sizeof fewer) {
            abort();
        }
    }
    return left == 0 ? NULL : malloc(size);
}
