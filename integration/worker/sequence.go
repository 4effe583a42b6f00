package worker

// End stands for "to the end" as p1 and for "from the start" as p0 of a range [p0, p1) of positions; as a sequence, for
// every one.
const End = -1

// SeqRemove forgets a sequence's positions in [p0, p1).
func (w *Worker) SeqRemove(seq, p0, p1 int) error {
	_, err := w.call("seq_rm", nil, "seq", seq, "p0", p0, "p1", p1)
	return err
}

// SeqCopy copies positions in [p0, p1) to another sequence. llama.cpp has no answer to it: where LESS refuses, the
// sequence is poisoned and the next decode says why.
func (w *Worker) SeqCopy(from, to, p0, p1 int) error {
	_, err := w.call("seq_cp", nil, "from", from, "to", to, "p0", p0, "p1", p1)
	return err
}

// SeqKeep forgets every other sequence.
func (w *Worker) SeqKeep(seq int) error {
	_, err := w.call("seq_keep", nil, "seq", seq)
	return err
}

// SeqAdd shifts positions in [p0, p1) by delta; as for refusals see SeqCopy.
func (w *Worker) SeqAdd(seq, p0, p1, delta int) error {
	_, err := w.call("seq_add", nil, "seq", seq, "p0", p0, "p1", p1, "delta", delta)
	return err
}

// SeqDivide divides positions in [p0, p1); as for refusals see SeqCopy.
func (w *Worker) SeqDivide(seq, p0, p1, by int) error {
	_, err := w.call("seq_div", nil, "seq", seq, "p0", p0, "p1", p1, "by", by)
	return err
}

// SeqPos returns the first and last position of a sequence that can be cut back to, -1 and -1 if it is empty.
func (w *Worker) SeqPos(seq int) (lo, hi int, err error) {
	r, err := w.call("seq_pos", nil, "seq", seq)
	if err != nil {
		return 0, 0, err
	}
	return r.int("min"), r.int("max"), r.err
}

// Clear empties the cache.
func (w *Worker) Clear() error {
	_, err := w.call("clear", nil)
	return err
}

// Save returns the state of a sequence, or with End of the whole context.
func (w *Worker) Save(seq int) ([]byte, error) {
	r, err := w.call("save", nil, "seq", seq)
	if err != nil {
		return nil, err
	}
	return r.payload, nil
}

// Load restores what Save returned, into any sequence, and returns how many bytes of it were read.
func (w *Worker) Load(seq int, state []byte) (int, error) {
	r, err := w.call("load", state, "seq", seq)
	if err != nil {
		return 0, err
	}
	return r.int("bytes"), r.err
}

// Flags of SaveFlagged and LoadFlagged: those of llama_state_seq_get_data_ext.
const (
	PartialOnly = 1
	OnDevice    = 2
)

// SaveFlagged is Save of one sequence with flags.
func (w *Worker) SaveFlagged(seq, flags int) ([]byte, error) {
	r, err := w.call("save", nil, "seq", seq, "flags", flags)
	if err != nil {
		return nil, err
	}
	return r.payload, nil
}

// LoadFlagged is Load of one sequence with flags.
func (w *Worker) LoadFlagged(seq int, state []byte, flags int) error {
	_, err := w.call("load", state, "seq", seq, "flags", flags)
	return err
}

// SaveFile is Save to a file, with tokens beside the state.
func (w *Worker) SaveFile(seq int, path string, tokens []int32) error {
	_, err := w.call("save", raw(tokens), "seq", seq, "file", path)
	return err
}

// LoadFile is Load from a file; it returns the tokens.
func (w *Worker) LoadFile(seq int, path string) ([]int32, error) {
	r, err := w.call("load", nil, "seq", seq, "file", path)
	if err != nil {
		return nil, err
	}
	return view[int32](r.payload), nil
}
