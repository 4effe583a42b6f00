// binding_limits.h: how many threads can run at once, and how much memory there can be.

#pragma once

#include <cstdint>
#include <string>

namespace binding {

// How many threads can run at once: CPUs that the process may run on, or what a control group's quota leaves of them.
int32_t usable_cpus();

// What this process can have in memory at most, in bytes, as far as the system and its control groups say: llama.cpp fills a cache
// before it looks whether there is room for one.
uint64_t memory_limit();

// How much of it new allocations can have, by the same: an allocation beyond it succeeds, and ends the process when it is written to.
uint64_t memory_left();

// What the control groups alone say, root being the root of the file system: the least quota, in CPUs, INT32_MAX where there is none;
// and the least limit in bytes, UINT64_MAX where there is none.
double   group_quota(const std::string & root);
uint64_t group_memory(const std::string & root);

} // namespace binding
