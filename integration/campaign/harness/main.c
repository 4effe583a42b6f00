// main.c: runs a harness once for each file, and for the empty input, where libFuzzer is not to be had or not wanted.

#include "harness.h"

int LLVMFuzzerInitialize(int * argc, char *** argv);
int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

int main(int argc, char ** argv) {
    LLVMFuzzerInitialize(&argc, &argv);
    LLVMFuzzerTestOneInput(NULL, 0);
    for (int i = 1; i < argc; i++) {
        FILE * f = fopen(argv[i], "rb");
        HOLDS(f && fseek(f, 0, SEEK_END) == 0);
        const long size = ftell(f);
        HOLDS(size >= 0 && fseek(f, 0, SEEK_SET) == 0);
        uint8_t * data = (uint8_t *) malloc(size ? (size_t) size : 1); // exactly: the sanitizer sees what is read past it
        HOLDS(data && fread(data, 1, (size_t) size, f) == (size_t) size);
        fclose(f);
        fprintf(stderr, "%s\n", argv[i]); // seen where the process ends
        LLVMFuzzerTestOneInput(data, (size_t) size);
        free(data);
    }
    return 0;
}
