// Package limits says how many CPUs and how much memory this process may use: what the machine has, and the control groups (v1 and
// v2) that hold the process allow. Threads and bounds that nobody set come from here. cgo/llama/binding_limits.cpp knows the same for
// apps. Libraries know a part: gopsutil what the machine has, automemlimit what a group allows, and neither what is left of that.
package limits

import (
	"math"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// CPUs returns how many threads can run at once: as many as there are CPUs that the process may run on, or fewer where GOMAXPROCS or
// a control group's quota says so.
func CPUs() int { return system("/").cpus() }

// Memory returns the bytes that new allocations can take, in this process and its children, without swapping. ok is false where
// the system does not say.
func Memory() (bytes int64, ok bool) {
	bytes, ok = free()
	if left := system("/").available(); left < math.MaxInt64 && (!ok || left < bytes) {
		return left, true
	}
	return bytes, ok
}

// system is the root of the file system; tests have others.
type system string

func (s system) read(name ...string) string {
	data, _ := os.ReadFile(filepath.Join(append([]string{string(s)}, name...)...)) // what is not there is no limit
	return strings.TrimSpace(string(data))
}

// number reads a number; none, such as "max", or a negative one is no limit.
func number(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return math.MaxInt64
	}
	return n
}

// groups returns the folders of a controller's control groups that hold the process, the innermost first, each with whether it is of
// v2. In a container the path may be one of outside, which is not there: then its top is what holds the process.
func (s system) groups(controller string) (dirs []string, v2 bool) {
	for line := range strings.Lines(s.read("proc/self/cgroup")) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) < 3 {
			continue
		}
		top := "/sys/fs/cgroup"
		switch {
		case strings.Contains(","+part[1]+",", ","+controller+","):
			top, v2, dirs = path.Join(top, controller), false, nil
		case part[1] == "" && dirs == nil:
			v2 = true
		default:
			continue
		}
		for dir := path.Join("/", part[2]); ; dir = path.Dir(dir) {
			dirs = append(dirs, path.Join(top, dir))
			if dir == "/" {
				break
			}
		}
	}
	return dirs, v2
}

// cpus is CPUs where the system is this one.
func (s system) cpus() int {
	return max(1, min(runtime.NumCPU(), runtime.GOMAXPROCS(0), int(s.quota())))
}

// quota is the least share of time that the control groups give, in CPUs.
func (s system) quota() float64 {
	least := float64(math.MaxInt32)
	dirs, v2 := s.groups("cpu")
	for _, dir := range dirs {
		quota, period := s.read(dir, "cpu.cfs_quota_us"), s.read(dir, "cpu.cfs_period_us")
		if v2 {
			quota, period, _ = strings.Cut(s.read(dir, "cpu.max"), " ")
		}
		if q, p := number(quota), number(period); q < math.MaxInt64 && p < math.MaxInt64 && p > 0 {
			least = min(least, float64(q)/float64(p))
		}
	}
	return least
}

// available is the least that the control groups leave: what they allow, less what is in use and could not be dropped.
func (s system) available() int64 {
	least := int64(math.MaxInt64)
	dirs, v2 := s.groups("memory")
	for _, dir := range dirs {
		limit, usage, dropped := number(s.read(dir, "memory.limit_in_bytes")), "memory.usage_in_bytes", "total_inactive_file "
		if v2 {
			limit = min(number(s.read(dir, "memory.max")), number(s.read(dir, "memory.high")))
			usage, dropped = "memory.current", "inactive_file "
		}
		used := number(s.read(dir, usage))
		if limit >= math.MaxInt64/2 || used == math.MaxInt64 { // v1 writes no limit as the largest number of pages
			continue
		}
		for line := range strings.Lines(s.read(dir, "memory.stat")) {
			if n, ok := strings.CutPrefix(line, dropped); ok {
				used -= min(used, number(strings.TrimSpace(n)))
			}
		}
		least = min(least, max(0, limit-used))
	}
	return least
}
