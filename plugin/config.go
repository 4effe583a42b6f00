package lesskv

import (
	"fmt"

	llama "github.com/go-skynet/go-llama.cpp"
)

// A Config says what the cache keeps. The zero value is the best setting that needs no training, as docs/quality.md measured it.
type Config struct {
	// Budget is how many slots each KV head of each layer has; a slot holds one token. Zero is what the adapter's phi and psi were trained
	// for; without them, as many as fit into a twelfth of the bytes of the full f16 cache at the context, and 1,024 at least.
	Budget Budget
	Policy Policy // which tokens stay; zero: the one that the adapter was trained with, Peak without one

	// Heavy is how many slots of the budget hold tokens chosen by score; the rest hold the most recent. 0 is the policy's own share (half
	// of the budget for H2O, a quarter for Peak).
	Heavy int
	// Pinned is how many first tokens of a sequence always stay; they count as heavy. 0 is the default, 1.
	Pinned int

	// Keys and Values are how they are stored, in all layers; zero: as the adapter says, layer by layer, and if it does not, Q8, or F16 where
	// the head size is no multiple of 32.
	Keys, Values SlotType

	// Adapter is the path of the adapter: phi and psi, budgets by head, or both. "" is the model's path with .lesskv.gguf for .gguf, if there
	// is such a file; NoAdapter is none.
	Adapter string
	// ForceAdapter accepts an adapter that was made for a model of the same shape with other weights, like the base of a
	// fine-tune.
	ForceAdapter bool

	// OnDevice puts the cache where the layers are (llama.SetGPULayers) and computes with it there, instead of in this machine's main memory.
	// It takes memory of the devices, and saves a round trip for each layer and token (docs/devices.md). Slots are F16 unless Keys and Values,
	// or the adapter, say F32. With budgets by head each head of a layer takes the memory of the one with most slots. What it does not cover
	// is ErrConfig.
	OnDevice bool

	// Checkpoints is how many copies of the cache a model keeps, of the newest ends of prompts and answers; 1 is of the newest prompt's
	// end. What was evicted is not taken back, so an edited or repeated prompt resumes from the latest copy within the prefix that it
	// shares with the cached text. 0 is the default, 2. CacheStats counts them.
	Checkpoints int
}

// None sets Heavy, Pinned or Checkpoints to zero; 0 means the default.
const None = -1

// NoAdapter, as Adapter, runs without an adapter: what is evicted is lost.
const NoAdapter = llama.LESSKVNoAdapter

// Enable makes llama.New give the model a LESS cache. A configuration that makes no sense is an error of llama.New's:
// ErrConfig, ErrBudget, ErrAdapter or ErrUnsupported.
func Enable(c Config) llama.ModelOption {
	return func(o *llama.ModelOptions) {
		o.LESSKV = &llama.LESSKVOptions{
			Policy:       string(c.Policy),
			Budget:       c.Budget.String(),
			Heavy:        c.Heavy,
			Pinned:       c.Pinned,
			Type:         fmt.Sprintf("%s,%s", c.Keys, c.Values),
			Adapter:      c.Adapter,
			ForceAdapter: c.ForceAdapter,
			OnDevice:     c.OnDevice,
			Checkpoints:  c.Checkpoints,
		}
	}
}

// Disable makes llama.New give the model the unmodified cache, whatever the environment says.
func Disable() llama.ModelOption {
	return func(o *llama.ModelOptions) {
		o.LESSKV = &llama.LESSKVOptions{Off: true}
	}
}

// A Policy decides which tokens stay: a name that [Policies] lists.
type Policy string

// Policies by name. [Policies] lists all that the runtime has; a later one need not have a constant.
const (
	H2O    Policy = "h2o"    // the most attention in sum (heavy-hitter oracle), and the most recent
	Lambda Policy = "lambda" // the oldest, and the most recent
	Peak   Policy = "peak"   // the most attention at any one time, decaying, and the most recent
	TOVA   Policy = "tova"   // the most attention of the last token, and the newest
)

// Policies lists the policies of the runtime, each with a few words that say what stays.
func Policies() []llama.LESSKVPolicy { return llama.LESSKVPolicies() }

// A SlotType is how a key or a value is stored.
type SlotType string

const (
	F16 SlotType = "f16"  // 2 bytes a number
	F32 SlotType = "f32"  // 4 bytes, exact
	Q8  SlotType = "q8_0" // 34 bytes for 32 numbers; the head size must be a multiple of 32; of 64, vectors are rotated first, as llama.cpp does
	Q4  SlotType = "q4_0" // 18 bytes for 32 numbers, the same
)
