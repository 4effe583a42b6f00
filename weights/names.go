package weights

import (
	"bufio"
	"bytes"
	"strconv"
	"strings"

	"github.com/lesskv/lesskv/cgo"
)

// The names of the adapter format ("The adapter file" in algorithm.md) are written down once, in cgo/kernels/adapter.h, for the C++
// loader. They are read from there, so that this package needs no C compiler.
var adapterHeader = defines("kernels/adapter.h")

// Keys of an adapter's metadata: strings, unless said otherwise.
var (
	keyGeneralType    = adapterHeader["LESSKV_KEY_GENERAL_TYPE"] // generalType
	keyArchitecture   = adapterHeader["LESSKV_KEY_ARCHITECTURE"] // the base model's
	keyAdapterType    = adapterHeader["LESSKV_KEY_ADAPTER_TYPE"] // adapterType
	keyVersion        = adapterHeader["LESSKV_KEY_VERSION"]      // uint32, 1 to adapterVersion
	keyRank           = adapterHeader["LESSKV_KEY_RANK"]         // uint32, R; from version 3 on an array where layers differ, as the next
	keyHidden         = adapterHeader["LESSKV_KEY_HIDDEN"]       // uint32, R'
	keyBlockCount     = adapterHeader["LESSKV_KEY_BLOCK_COUNT"]  // uint32, layers of the base model
	keyHeadCount      = adapterHeader["LESSKV_KEY_HEAD_COUNT"]   // uint32, Hq; from version 2 on an array where layers differ, as the next three
	keyHeadCountKV    = adapterHeader["LESSKV_KEY_HEAD_COUNT_KV"]
	keyKeyLength      = adapterHeader["LESSKV_KEY_KEY_LENGTH"]
	keyValueLength    = adapterHeader["LESSKV_KEY_VALUE_LENGTH"]
	keyBudgetWeight   = adapterHeader["LESSKV_KEY_BUDGET_WEIGHT"]   // []float32, a weight for each KV head of each layer; from version 2 on, may be missing
	keySlotKeyType    = adapterHeader["LESSKV_KEY_SLOT_KEY_TYPE"]   // []uint32, the type of each layer's keys in slots; from version 3 on, may be missing, with the next
	keySlotValueType  = adapterHeader["LESSKV_KEY_SLOT_VALUE_TYPE"] // the same of values
	keyTrainedHeavy   = adapterHeader["LESSKV_KEY_TRAINED_HEAVY"]   // uint32, h of the training
	keyTrainedRecent  = adapterHeader["LESSKV_KEY_TRAINED_RECENT"]  // uint32, r
	keyTrainedUbatch  = adapterHeader["LESSKV_KEY_TRAINED_UBATCH"]  // uint32, tokens of a micro-batch
	keyTrainedContext = adapterHeader["LESSKV_KEY_TRAINED_CONTEXT"] // uint32, longest sequence
	keyTrainedPolicy  = adapterHeader["LESSKV_KEY_TRAINED_POLICY"]
	keyBaseName       = adapterHeader["LESSKV_KEY_BASE_NAME"]   // the base model's name, for people
	keyDescription    = adapterHeader["LESSKV_KEY_DESCRIPTION"] // how the adapter was made, for people; may be missing
	keyFingerprint    = adapterHeader["LESSKV_KEY_FINGERPRINT"] // 64 hex digits

	generalType = adapterHeader["LESSKV_GENERAL_TYPE"]
	adapterType = adapterHeader["LESSKV_ADAPTER_TYPE"]
)

// Formats of the tensors' names; the argument is the layer.
var (
	tensorPhi0 = adapterHeader["LESSKV_TENSOR_PHI_0"]
	tensorPhi1 = adapterHeader["LESSKV_TENSOR_PHI_1"]
	tensorPsi0 = adapterHeader["LESSKV_TENSOR_PSI_0"]
	tensorPsi1 = adapterHeader["LESSKV_TENSOR_PSI_1"]
	tensorPsi2 = adapterHeader["LESSKV_TENSOR_PSI_2"]

	tensorPhiScale = adapterHeader["LESSKV_TENSOR_PHI_SCALE"]
)

var (
	adapterVersion = uint32(defined("LESSKV_ADAPTER_VERSION")) // the newest that is read

	// MaxSize is the most that a rank, a hidden size and the sizes of a model may be.
	MaxSize = defined("LESSKV_ADAPTER_MAX_SIZE")
)

// MaxWeight is the largest weight of an allocation: LESSKV_WEIGHT_MAX of lesskv.h.
const MaxWeight = 1 << 31

// defines returns what a header of the project defines: numbers as they stand, strings without their quotation marks.
func defines(name string) map[string]string {
	data, err := cgo.Sources.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	all := map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		line, ok := strings.CutPrefix(s.Text(), "#define ")
		if !ok {
			continue
		}
		line, _, _ = strings.Cut(line, "//")
		key, value, _ := strings.Cut(line, " ")
		value = strings.TrimSpace(value)
		if text, err := strconv.Unquote(value); err == nil {
			value = text
		}
		all[key] = value
	}
	return all
}

func defined(name string) int {
	n, err := strconv.Atoi(adapterHeader[name])
	if err != nil {
		panic("adapter.h: " + name + ": " + err.Error())
	}
	return n
}
