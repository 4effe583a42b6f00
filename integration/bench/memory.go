package bench

// FreeMemory returns the bytes that new processes can have without swapping, if the system says so.
func FreeMemory() (int64, bool) { return freeMemory() }
