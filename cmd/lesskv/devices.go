//go:build cgo

package main

import (
	"fmt"
	"io"
	"os"
)

// rpcServers returns the servers of LESSKV_RPC for so many layers on devices. For none it says that they are not used.
func rpcServers(stderr io.Writer, command string, layers int) string {
	servers := os.Getenv("LESSKV_RPC")
	if layers == 0 && servers != "" {
		fmt.Fprintf(stderr, "lesskv %s: the servers in LESSKV_RPC are not used: no layers are to run on devices (--gpu-layers)\n", command)
		return ""
	}
	return servers
}
