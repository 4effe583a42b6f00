package worker

import (
	"fmt"
	"strings"
)

// Servers deals RPC servers, "host:port" with commas between them, out to so many processes, as many to each, in their order: a server
// has one client at a time. Of "" each gets "".
func Servers(list string, processes int) ([]string, error) {
	dealt := make([]string, processes)
	if list == "" {
		return dealt, nil
	}
	all := strings.Split(list, ",")
	if len(all)%processes != 0 {
		return nil, fmt.Errorf("%d RPC servers for %d processes: want as many for each, as a server has one client at a time (LESSKV_RPC)", len(all), processes)
	}
	each := len(all) / processes
	for i := range dealt {
		dealt[i] = strings.Join(all[i*each:(i+1)*each], ",")
	}
	return dealt, nil
}
