// worker_process.cpp: what needs no model: the process's memory, its log, and elements of quantised types.

#include "worker.h"

#include "worker_bench.h"

#ifdef __APPLE__
#include <mach/mach.h>
#endif

namespace {

constexpr size_t max_log = 1 << 20;

struct memory_use {
    int64_t rss = -1, peak = -1, anon = -1;

    memory_use() {
#ifdef __APPLE__
        mach_task_basic_info basic;
        mach_msg_type_number_t n = MACH_TASK_BASIC_INFO_COUNT;
        if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, task_info_t(&basic), &n) == KERN_SUCCESS) {
            rss  = int64_t(basic.resident_size);
            peak = int64_t(basic.resident_size_max);
        }
        task_vm_info vm;
        n = TASK_VM_INFO_COUNT;
        if (task_info(mach_task_self(), TASK_VM_INFO, task_info_t(&vm), &n) == KERN_SUCCESS) {
            anon = int64_t(vm.internal);
        }
#else
        FILE * f = fopen("/proc/self/status", "r");
        if (!f) {
            return;
        }
        char line[256];
        while (fgets(line, sizeof(line), f)) {
            long long kb;
            if (sscanf(line, "VmRSS: %lld", &kb) == 1) {
                rss = kb*1024;
            } else if (sscanf(line, "VmHWM: %lld", &kb) == 1) {
                peak = kb*1024;
            } else if (sscanf(line, "RssAnon: %lld", &kb) == 1) {
                anon = kb*1024;
            }
        }
        fclose(f);
#endif
    }
};

} // namespace

void log_lines::add(ggml_log_level level, const char * text, void * self) {
    auto & log = *static_cast<log_lines *>(self);
    log.all += text;
    if (log.all.size() > max_log) {
        log.all.erase(0, log.all.size() - max_log);
    }
    if (level == GGML_LOG_LEVEL_WARN || level == GGML_LOG_LEVEL_ERROR) {
        log.errors += text;
        fputs(text, stderr);
    }
}

void worker::memory(request & req, reply & out) {
    const bool reset = req.flag("reset", false);
    req.done();
    if (reset) {
        bench::reset_peak();
    }
    const memory_use use;
    out.set("rss",  use.rss);
    out.set("peak", use.peak);
    out.set("anon", use.anon);
}

void worker::take_log(request & req, reply & out) {
    req.done();
    out.give(std::vector<char>(log.all.begin(), log.all.end()));
    log.all.clear();
}

// What a model's file holds in a quantised type.
void worker::floats(request & req, reply & out) {
    const auto    type = ggml_type(req.integer("type", 0, GGML_TYPE_COUNT - 1));
    const int64_t n    = req.integer("n", 1, int64_t(max_payload/sizeof(float)));
    const auto    data = req.bytes();
    req.done();
    const auto * traits = ggml_get_type_traits(type);
    if (!traits->to_float || n % traits->blck_size != 0) {
        refuse("type %d: can't make float32 of %lld elements", int(type), (long long) n);
    }
    const size_t want = size_t(n/traits->blck_size)*traits->type_size;
    if (data.size() != want) {
        refuse("payload of %zu bytes: want %zu for %lld elements of %s", data.size(), want, (long long) n, traits->type_name);
    }
    std::vector<float> v(n);
    traits->to_float(data.data(), v.data(), n);
    out.give(std::move(v));
}
