package verify

import (
	"encoding/json"
	"fmt"

	"github.com/lesskv/lesskv/integration/provenance"
)

// ReportVersion is that of the report's fields.
const ReportVersion = 1

// A Report is what was measured. Its JSON holds no time and no path, so that the same plan gives the same bytes with the same build on the
// same machine; Peaks, and the peaks in Reading, are measured anew by each run.
type Report struct {
	Version  int              `json:"version"`
	Model    ModelInfo        `json:"model"`
	Runtime  string           `json:"runtime"` // what "unmodified" means
	Build    provenance.Build `json:"build,omitzero"`
	SlotType string           `json:"slot_type,omitempty"` // of sparse caches; f16
	Adapters []AdapterInfo    `json:"adapters"`
	Text     TextInfo         `json:"text"`
	GPU      int              `json:"gpu_layers,omitempty"` // layers that every runtime had on devices
	Seed     uint64           `json:"seed"`
	Samples  int              `json:"samples"`
	Block    int              `json:"block"` // consecutive positions that are drawn together

	Rows     []*Row     `json:"rows"`
	Recall   []Recall   `json:"recall,omitempty"`
	Profiles []Profile  `json:"profiles,omitempty"`
	Reading  []Reading  `json:"reading,omitempty"`
	Peaks    []Peak     `json:"peaks,omitempty"`
	Frontier []Frontier `json:"frontier"`       // best at equal bytes
	Best     []Best     `json:"best,omitempty"` // of Plan.Bytes
	Findings []string   `json:"findings"`       // in words
	Notes    []string   `json:"notes,omitempty"`
	Checks   []Check    `json:"checks"`
}

// ModelInfo says which model.
type ModelInfo struct {
	File         string `json:"file"`
	Name         string `json:"name,omitempty"`
	Architecture string `json:"architecture"`
	SHA256       string `json:"sha256"`
	Bytes        int64  `json:"bytes"`
	Layers       int    `json:"layers"`
	Context      int    `json:"context"` // that it was trained for
}

// AdapterInfo says which adapter, and what it was trained for.
type AdapterInfo struct {
	File    string `json:"file"`
	SHA256  string `json:"sha256"`
	Policy  string `json:"policy"`
	Heavy   int    `json:"heavy"`
	Recent  int    `json:"recent"`
	Ubatch  int    `json:"ubatch"`
	Rank    int    `json:"rank"` // the largest of a layer, as the hidden size
	Hidden  int    `json:"hidden"`
	Ranks   []int  `json:"ranks,omitempty"` // of each layer, 0 in one without phi and psi; earlier reports have neither these nor hidden sizes
	Hiddens []int  `json:"hiddens,omitempty"`
	Bytes   int64  `json:"bytes"` // in memory
}

// TextInfo says which tokens.
type TextInfo struct {
	SHA256  string `json:"sha256"` // of the windows' tokens, int32, little-endian
	Tokens  int    `json:"tokens"` // of the whole text
	Windows int    `json:"windows"`
	Stride  int    `json:"stride"`
	Start   bool   `json:"start"` // the model's first token stands before each window
}

// Bytes are what a cache of one sequence occupies.
type Bytes struct {
	Slots   int64 `json:"slots"` // of the full caches: all
	State   int64 `json:"state"`
	Kernels int64 `json:"kernels"` // once per model, whatever the number of sequences
	Total   int64 `json:"total"`
}

// A Row is one method at one budget, context and micro-batch.
type Row struct {
	Context      int      `json:"context"`
	Ubatch       int      `json:"ubatch"`
	Budget       int      `json:"budget"` // of the setting; Baseline+ and Baseline++ have more slots
	Method       string   `json:"method"`
	Policy       string   `json:"policy,omitempty"`
	Types        string   `json:"types,omitempty"`  // of the slots, where the plan has several
	Within       int64    `json:"within,omitempty"` // bytes that the row was to fill
	Slots        int      `json:"slots"`
	Adapter      string   `json:"adapter,omitempty"`
	AdapterNotes []string `json:"adapter_notes,omitempty"` // where it is used otherwise than trained
	Bytes        Bytes    `json:"bytes"`
	From         int      `json:"from"`            // first position that counts
	Fault        string   `json:"fault,omitempty"` // why there are no measures

	Measures
	FullPerplexity Estimate  `json:"full_perplexity"`
	Common         *Measures `json:"common,omitempty"` // over the positions that all budgets of this context and micro-batch share
	CommonFrom     int       `json:"common_from"`

	ClosedKL  *Estimate             `json:"closed_kl,omitempty"`         // LESS: share of the gap between sparse and full that it closes
	ClosedPPL *Estimate             `json:"closed_perplexity,omitempty"` // the same in perplexity
	Against   map[string]Difference `json:"against,omitempty"`           // LESS: beside sparse, Baseline+ and Baseline++
	Buckets   []Bucket              `json:"buckets,omitempty"`

	Generation *Generation `json:"generation,omitempty"`
}

// Measures are taken from logits, over positions.
type Measures struct {
	Positions  int      `json:"positions"`
	Blocks     int      `json:"blocks"` // that the intervals are drawn from: below ten or so they mean little
	Perplexity Estimate `json:"perplexity"`
	Increase   Estimate `json:"perplexity_increase"` // paired difference to the full cache
	KL         Estimate `json:"kl"`                  // KL(full || method), nats
	KLP99      Estimate `json:"kl_p99"`
	KLMax      float64  `json:"kl_max"`
	Top1       Estimate `json:"top1"` // share of positions with the same most likely token
}

// An Estimate is a value, its standard error, and its interval of 95 %.
type Estimate struct {
	Value float64 `json:"value"`
	SE    float64 `json:"se"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}

// A Difference is paired: of LESS's KL or perplexity less another method's. Below zero LESS is better.
type Difference struct {
	KL         Estimate `json:"kl"`
	Perplexity Estimate `json:"perplexity"`
}

// A Bucket is the positions [From, To) of all windows.
type Bucket struct {
	From           int      `json:"from"`
	To             int      `json:"to"`
	KL             Estimate `json:"kl"`
	Perplexity     float64  `json:"perplexity"`
	FullPerplexity float64  `json:"full_perplexity"`
	Top1           float64  `json:"top1"`
}

// A Peak is the most memory that the processes of either runtime had with a context.
type Peak struct {
	Context    int   `json:"context"`
	Unmodified int64 `json:"unmodified"`
	LESS       int64 `json:"less"`
	Slots      int   `json:"slots"` // of LESS
}

// Frontier is the rows of one context and micro-batch that no other of the same bytes or fewer is closer to the full cache than,
// by KL over the common positions, fewest bytes first.
type Frontier struct {
	Context int             `json:"context"`
	Ubatch  int             `json:"ubatch"`
	From    int             `json:"from"`
	Rows    []FrontierEntry `json:"rows"`
}

// FrontierEntry names a row.
type FrontierEntry struct {
	Method string   `json:"method"`
	Policy string   `json:"policy,omitempty"`
	Budget int      `json:"budget,omitempty"`
	Slots  int      `json:"slots"`
	Bytes  int64    `json:"bytes"`
	KL     Estimate `json:"kl"`
}

// Name is the method with its policy and, where it is not the whole context, its slots: at equal bytes Baseline+ and
// Baseline++ are sparse caches like any other.
func (e FrontierEntry) Name() string {
	switch {
	case e.Budget == 0:
		return e.Method
	case e.Method == Plus || e.Method == PlusPlus:
		return fmt.Sprintf("%s of %d", name(Sparse, e.Policy), e.Slots)
	}
	return fmt.Sprintf("%s of %d", name(e.Method, e.Policy), e.Slots)
}

// Name is the method with its policy.
func (r *Row) Name() string {
	if r.Types == "" {
		return name(r.Method, r.Policy)
	}
	return name(r.Method, r.Policy) + " " + r.Types
}

func name(method, policy string) string {
	if policy == "" {
		return method
	}
	return policy + " " + method
}

// Measured are the rows that say how good a method is: all but those that say whether the build is to be trusted.
func (r *Report) Measured() []*Row {
	var out []*Row
	for _, row := range r.Rows {
		if row.measured() {
			out = append(out, row)
		}
	}
	return out
}

// measured tells whether a row says how good a method is, not whether the build is to be trusted.
func (r *Row) measured() bool {
	return r.Method != Off && r.Method != NothingEvicted && r.Method != Reference
}

// UnmarshalJSON reads a row, also of a report that has the names which checks had before.
func (r *Row) UnmarshalJSON(data []byte) error {
	type fields Row
	if err := json.Unmarshal(data, (*fields)(r)); err != nil {
		return err
	}
	switch r.Method {
	case "whole":
		r.Method = NothingEvicted
	case "plain":
		r.Method = Reference
	}
	return nil
}

// Row returns the row of a setting, or nil.
func (r *Report) Row(context, ubatch, budget int, policy, method string) *Row {
	for _, row := range r.Rows {
		if row.Context == context && row.Ubatch == ubatch && row.Budget == budget && row.Policy == policy && row.Method == method {
			return row
		}
	}
	return nil
}

// JSON returns the report, indented.
func (r *Report) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", " ")
	return append(b, '\n'), err
}
