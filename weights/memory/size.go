package memory

import "github.com/docker/go-units"

// Size writes bytes for people, in four digits: 9.888 MiB.
func Size[N int64 | uint64](bytes N) string {
	return units.CustomSize("%.4g %s", float64(bytes), units.KiB, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"})
}
