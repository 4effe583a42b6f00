// How many threads can run at once, and how much memory there can be: patches/limits/limits.go knows the same for the commands, and
// its tests run the rules of both.

#include "binding_limits.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <sys/resource.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#include <sys/sysinfo.h>
#endif

namespace binding {

// The folders of a controller's control groups that hold the process, the innermost first, and whether they are of v1.
static std::vector<std::string> groups(const std::string & root, const std::string & controller, bool & v1) {
    std::vector<std::string> dirs;
    v1 = false;
    std::ifstream file(root + "/proc/self/cgroup");
    for (std::string line; std::getline(file, line);) { // ID:CONTROLLERS:PATH, of v2 with neither
        std::istringstream parts(line);
        std::string id, controllers, path;
        std::getline(std::getline(parts, id, ':'), controllers, ':');
        std::getline(parts, path);
        const bool named = ("," + controllers + ",").find("," + controller + ",") != std::string::npos;
        if (!named && (!controllers.empty() || v1)) {
            continue;
        }
        if (named) {
            v1 = true;
            dirs.clear(); // what v2 says has no effect
        }
        // in a container the path may be one of outside, which is not there: then its top is what holds the process
        for (const std::string top = root + (named ? "/sys/fs/cgroup/" + controller : "/sys/fs/cgroup");; path.resize(path.find_last_of('/'))) {
            while (!path.empty() && path.back() == '/') {
                path.pop_back();
            }
            dirs.push_back(top + path);
            if (path.find('/') == std::string::npos) {
                break;
            }
        }
    }
    return dirs;
}

double group_quota(const std::string & root) {
    double least = std::numeric_limits<int32_t>::max();
    bool v1;
    for (const auto & dir : groups(root, "cpu", v1)) {
        double q = -1, period = -1;
        if (v1) {
            std::ifstream(dir + "/cpu.cfs_quota_us") >> q;
            std::ifstream(dir + "/cpu.cfs_period_us") >> period;
        } else {
            std::ifstream(dir + "/cpu.max") >> q >> period; // "max PERIOD" leaves q 0 and fails
        }
        if (q > 0 && period > 0) {
            least = std::min(least, q / period);
        }
    }
    return least;
}

int32_t usable_cpus() {
    int32_t n = std::thread::hardware_concurrency(); // 0: unknown
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        n = CPU_COUNT(&set);
    }
#endif
    const double most = group_quota("");
    if (n < 1) {
        n = std::numeric_limits<int32_t>::max();
    }
    return std::max<int32_t>(1, std::min<double>(n, most));
}

// The number in a file; UINT64_MAX where there is no file, or no number in it ("max").
static uint64_t number(const std::string & path) {
    std::ifstream file(path);
    uint64_t n;
    return file >> n ? n : UINT64_MAX;
}

// The number behind a name, in a file with one to a line; UINT64_MAX if it is not there.
static uint64_t number(const std::string & path, const std::string & name) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        std::istringstream words(line);
        std::string first;
        uint64_t n;
        if (words >> first >> n && first == name) {
            return n;
        }
    }
    return UINT64_MAX;
}

uint64_t group_memory(const std::string & root) {
    uint64_t least = UINT64_MAX;
    bool v1;
    for (const auto & dir : groups(root, "memory", v1)) {
        for (const std::string & name : v1 ? std::vector<std::string>{ "memory.limit_in_bytes" } : std::vector<std::string>{ "memory.max", "memory.high" }) {
            const uint64_t bytes = number(dir + "/" + name);
            if (bytes < INT64_MAX/2) { // v1 writes no limit as the largest number of pages
                least = std::min(least, bytes);
            }
        }
    }
    return least;
}

// The machine's memory and swap; UINT64_MAX if the system does not say.
static uint64_t machine_memory() {
#ifdef __linux__
    struct sysinfo machine;
    if (sysinfo(&machine) == 0) {
        return ((uint64_t) machine.totalram + machine.totalswap)*machine.mem_unit;
    }
#elif defined(_SC_PHYS_PAGES) // macOS among them, whose swap is what its disk has room for
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
    if (pages > 0 && size > 0) {
        return (uint64_t) pages*size;
    }
#endif
    return UINT64_MAX;
}

uint64_t memory_limit() {
    uint64_t limit = machine_memory();
    struct rlimit space;
    if (getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) {
        limit = std::min<uint64_t>(limit, space.rlim_cur);
    }
    return std::min(limit, group_memory(""));
}

uint64_t memory_left() {
    uint64_t left = machine_memory(); // macOS says nothing that would be closer
#ifdef __linux__
    const uint64_t available = number("/proc/meminfo", "MemAvailable:"); // KiB
    left = available == UINT64_MAX ? left : available << 10;
#endif
    bool v1;
    for (const auto & dir : groups("", "memory", v1)) {
        const uint64_t limit = v1 ? number(dir + "/memory.limit_in_bytes") : std::min(number(dir + "/memory.max"), number(dir + "/memory.high"));
        const uint64_t used  = number(dir + (v1 ? "/memory.usage_in_bytes" : "/memory.current"));
        if (limit == UINT64_MAX || used == UINT64_MAX) {
            continue;
        }
        const uint64_t dropped = number(dir + "/memory.stat", v1 ? "total_inactive_file" : "inactive_file"); // where more is needed
        const uint64_t kept    = dropped == UINT64_MAX ? used : used - std::min(used, dropped);
        left = std::min(left, limit - std::min(limit, kept));
    }
    return left;
}

} // namespace binding
