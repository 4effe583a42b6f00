#include "lesskv-cpu.h"

#include "lesskv-cpu-features.h" // generated: LESSKV_CPU_FEATURES, the names of what was compiled for, spaces between

#include <algorithm>
#include <cstdint>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

#if defined(__x86_64__)

namespace {

enum reg { EAX, EBX, ECX, EDX };

// What must be switched on in XCR0 before the registers of a feature keep their contents.
constexpr uint64_t os_none = 0, os_avx = 0x6, os_avx512 = 0xe6, os_amx = 0x60000;

// Intel SDM vol. 2, CPUID; AMD APM vol. 3, appendix E.
const struct feature {
    const char * name;
    uint32_t     leaf, subleaf;
    reg          in;
    int          bit;
    uint64_t     os;
} features[] = {
    { "sse3",            1, 0, ECX,  0, os_none },
    { "ssse3",           1, 0, ECX,  9, os_none },
    { "fma",             1, 0, ECX, 12, os_avx },
    { "sse4.1",          1, 0, ECX, 19, os_none },
    { "sse4.2",          1, 0, ECX, 20, os_none },
    { "movbe",           1, 0, ECX, 22, os_none },
    { "popcnt",          1, 0, ECX, 23, os_none },
    { "avx",             1, 0, ECX, 28, os_avx },
    { "f16c",            1, 0, ECX, 29, os_avx },
    { "bmi1",            7, 0, EBX,  3, os_none },
    { "avx2",            7, 0, EBX,  5, os_avx },
    { "bmi2",            7, 0, EBX,  8, os_none },
    { "avx512f",         7, 0, EBX, 16, os_avx512 },
    { "avx512dq",        7, 0, EBX, 17, os_avx512 },
    { "avx512ifma",      7, 0, EBX, 21, os_avx512 },
    { "avx512cd",        7, 0, EBX, 28, os_avx512 },
    { "avx512bw",        7, 0, EBX, 30, os_avx512 },
    { "avx512vl",        7, 0, EBX, 31, os_avx512 },
    { "avx512vbmi",      7, 0, ECX,  1, os_avx512 },
    { "avx512vbmi2",     7, 0, ECX,  6, os_avx512 },
    { "avx512vnni",      7, 0, ECX, 11, os_avx512 },
    { "avx512bitalg",    7, 0, ECX, 12, os_avx512 },
    { "avx512vpopcntdq", 7, 0, ECX, 14, os_avx512 },
    { "amx-bf16",        7, 0, EDX, 22, os_amx },
    { "avx512fp16",      7, 0, EDX, 23, os_avx512 },
    { "amx-tile",        7, 0, EDX, 24, os_amx },
    { "amx-int8",        7, 0, EDX, 25, os_amx },
    { "avxvnni",         7, 1, EAX,  4, os_avx },
    { "avx512bf16",      7, 1, EAX,  5, os_avx512 },
    { "lzcnt",  0x80000001, 0, ECX,  5, os_none },
};

uint64_t xcr0() {
    uint32_t r[4] = {};
    if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1)) { // no OSXSAVE, no XGETBV
        return 0;
    }
    uint32_t lo, hi;
    __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return uint64_t(hi) << 32 | lo;
}

bool has(const std::string & name) {
    for (const feature & f : features) {
        if (name == f.name) {
            uint32_t r[4] = {};
            return __get_cpuid_count(f.leaf, f.subleaf, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) && (r[f.in] >> f.bit & 1) && (xcr0() & f.os) == f.os;
        }
    }
    return false;
}

} // namespace

#elif defined(__APPLE__)

namespace {

bool has(const std::string & name) {
    static const struct {
        const char * name;
        const char * key;
    } features[] = {
        { "dotprod", "hw.optional.arm.FEAT_DotProd" },
        { "fp16",    "hw.optional.arm.FEAT_FP16" },
        { "i8mm",    "hw.optional.arm.FEAT_I8MM" },
        { "bf16",    "hw.optional.arm.FEAT_BF16" },
        { "sme",     "hw.optional.arm.FEAT_SME" },
        { "lse",     "hw.optional.arm.FEAT_LSE" },
    };
    for (const auto & f : features) {
        int    value = 0;
        size_t size  = sizeof(value);
        if (name == f.name) {
            return sysctlbyname(f.key, &value, &size, nullptr, 0) == 0 && value == 1;
        }
    }
    return false;
}

} // namespace

#elif defined(__linux__)

namespace {

bool has(const std::string & name) {
    // Linux's arch/arm64/include/uapi/asm/hwcap.h; an old C library may lack the newer names
    static const struct {
        const char *  name;
        unsigned long type;
        int           bit;
    } features[] = {
        { "lse",     AT_HWCAP,   8 },
        { "fp16",    AT_HWCAP,  10 },
        { "dotprod", AT_HWCAP,  20 },
        { "sve",     AT_HWCAP,  22 },
        { "sve2",    AT_HWCAP2,  1 },
        { "i8mm",    AT_HWCAP2, 13 },
        { "bf16",    AT_HWCAP2, 14 },
        { "sme",     AT_HWCAP2, 23 },
    };
    for (const auto & f : features) {
        if (name == f.name) {
            return getauxval(f.type) >> f.bit & 1;
        }
    }
    return false;
}

} // namespace

#endif

const char * lesskv_cpu_missing(void) {
    static const std::string missing = [] {
        const std::string wanted = LESSKV_CPU_FEATURES;
        std::string       text;
        for (size_t i = 0; i < wanted.size();) {
            const size_t      end  = std::min(wanted.find(' ', i), wanted.size());
            const std::string name = wanted.substr(i, end - i);
            if (!has(name)) {
                text += text.empty() ? name : " " + name;
            }
            i = end + 1;
        }
        return text;
    }();
    return missing.empty() ? nullptr : missing.c_str();
}
