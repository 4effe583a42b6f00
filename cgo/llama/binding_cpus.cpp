// How many threads can run at once: patches/limits/limits.go knows the same for the commands, and has the tests of the rules.

#include "binding_impl.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace binding {

// The least quota of the control groups, v1 or v2, that hold the process, in CPUs.
static double quota() {
    double least = std::numeric_limits<int32_t>::max();
    std::ifstream groups("/proc/self/cgroup");
    bool v1 = false;
    for (std::string line; std::getline(groups, line);) { // ID:CONTROLLERS:PATH, of v2 with neither
        std::istringstream parts(line);
        std::string id, controllers, path;
        std::getline(std::getline(parts, id, ':'), controllers, ':');
        std::getline(parts, path);
        const bool cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
        if (!cpu && (!controllers.empty() || v1)) {
            continue;
        }
        if (cpu) {
            v1    = true;
            least = std::numeric_limits<int32_t>::max(); // what v2 said has no effect
        }
        // in a container the path may be one of outside, which is not there: then its top is what holds the process
        for (const std::string top = cpu ? "/sys/fs/cgroup/cpu" : "/sys/fs/cgroup";; path.resize(path.find_last_of('/'))) {
            while (!path.empty() && path.back() == '/') {
                path.pop_back();
            }
            const std::string dir = top + path;
            double q = -1, period = -1;
            if (cpu) {
                std::ifstream(dir + "/cpu.cfs_quota_us") >> q;
                std::ifstream(dir + "/cpu.cfs_period_us") >> period;
            } else {
                std::ifstream(dir + "/cpu.max") >> q >> period; // "max PERIOD" leaves q 0 and fails
            }
            if (q > 0 && period > 0) {
                least = std::min(least, q / period);
            }
            if (path.find('/') == std::string::npos) {
                break;
            }
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
    const double most = quota();
    if (n < 1) {
        n = std::numeric_limits<int32_t>::max();
    }
    return std::max<int32_t>(1, std::min<double>(n, most));
}

} // namespace binding
