// adapter.cpp: the C++ reader of adapters, with the model $LESSKV_FUZZ_MODEL. The input are edits of the adapter
// $LESSKV_FUZZ_ADAPTER. What is refused is a std::runtime_error that names the file; what is taken holds matrices of the types of
// the format, no larger than the file, which phi and psi can be computed with.

#include "harness.h"

#include "lesskv-adapter.h"

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include <unistd.h>

static llama_model *        model;
static std::vector<uint8_t> good;
static int                  fd = -1;
static std::string          path;

static std::string variable(const char * name) {
    const char * value = getenv(name);
    if (!value) {
        fprintf(stderr, "%s is not set: go run ./integration/campaign sets it\n", name);
        exit(2);
    }
    return value;
}

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    model = llama_model_load_from_file(variable("LESSKV_FUZZ_MODEL").c_str(), llama_model_default_params());
    HOLDS(model);
    FILE * f = fopen(variable("LESSKV_FUZZ_ADAPTER").c_str(), "rb");
    HOLDS(f);
    for (int c; (c = getc(f)) != EOF;) {
        good.push_back((uint8_t) c);
    }
    fclose(f);
    char name[] = "/tmp/lesskv-fuzz-XXXXXX"; // reached by its descriptor: nothing stays
    fd = mkstemp(name);
    HOLDS(fd >= 0);
    unlink(name);
    path = "/dev/fd/" + std::to_string(fd);
    return 0;
}

static size_t check(const lesskv_mat & m, int32_t n_in, int64_t rows, bool f32) {
    HOLDS(m.type == LESSKV_TYPE_F32 || (!f32 && (m.type == LESSKV_TYPE_F16 || m.type == LESSKV_TYPE_Q8_0)));
    const size_t row = lesskv_row_size(m.type, n_in);
    HOLDS(row > 0);
    return row*(size_t) rows;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    size_t n;
    uint8_t * file = edited(good.data(), good.size(), data, size, &n);
    HOLDS(ftruncate(fd, 0) == 0 && pwrite(fd, file, n, 0) == (ssize_t) n);
    free(file);
    try {
        const lesskv_adapter a(path, *model, true);
        HOLDS(a.bytes <= n && a.sha256.size() == 64);
        const int32_t hq = llama_model_n_head(model), hkv = llama_model_n_head_kv(model), d = llama_model_n_embd(model)/hq;
        std::vector<float> x(d, 0.5f);
        int32_t rank = 0, hidden = 0;
        size_t bytes = 0;
        for (int il = 0; il < llama_model_n_layer(model); ++il) {
            const lesskv_kernels * k = a.layer(il);
            if (!k) {
                continue;
            }
            HOLDS(k->rank > 0 && k->hidden > 0);
            rank   = std::max(rank,   k->rank);
            hidden = std::max(hidden, k->hidden);
            std::vector<float> out(k->rank), tmp(k->hidden + 2*k->rank);
            bytes += check(k->phi[0], d, (int64_t) k->hidden*hq,  false) + check(k->phi[1], k->hidden, (int64_t) k->rank*hq, false);
            bytes += check(k->psi[0], d, (int64_t) k->hidden*hkv, false) + check(k->psi[1], k->hidden, (int64_t) k->rank*hkv, false);
            bytes += check(k->psi[2], k->rank, (int64_t) k->rank*hkv, true);
            bytes += k->phi_scale ? hq*sizeof(float) : 0;
            for (int32_t i = 0; k->phi_scale && i < hq; ++i) {
                HOLDS(std::isfinite(k->phi_scale[i]));
            }
            lesskv_phi(k, d, hq - 1,  x.data(), 1, out.data(), tmp.data());
            lesskv_psi(k, d, hkv - 1, x.data(), 1, out.data(), tmp.data());
        }
        HOLDS(bytes == a.bytes && rank == a.rank && hidden == a.hidden);
    } catch (const std::runtime_error & e) {
        HOLDS(size > 0); // the good one is taken
        HOLDS(strstr(e.what(), path.c_str()));
    }
    return 0;
}
