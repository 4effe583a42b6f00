package worker

// Splits is what a graph costs that is computed on several devices.
type Splits struct {
	Parts  int   // between which the device changes
	Copies int   // tensors that are copied for that, once a graph
	Bytes  int64 // theirs

	Weights, Cache, Compute int64 // bytes in memory that is no host's, of the model and this context
}

// Splits plans a graph for n tokens, which it does not compute. The model has a cache.
func (w *Worker) Splits(n int) (Splits, error) {
	r, err := w.call("splits", nil, "n", n)
	if err != nil {
		return Splits{}, err
	}
	s := Splits{
		Parts: r.int("splits"), Copies: r.int("copies"), Bytes: r.integer("bytes"),
		Weights: r.integer("device_weights"), Cache: r.integer("device_cache"), Compute: r.integer("device_compute"),
	}
	return s, r.err
}

// DeviceMemory returns how many bytes are free on all devices that layers can be put on, those of the servers among them.
func (w *Worker) DeviceMemory(rpc string) (int64, error) {
	r, err := w.call("device_memory", nil, "rpc", rpc)
	if err != nil {
		return 0, err
	}
	return r.integer("free"), r.err
}
