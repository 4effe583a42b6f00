package kernels

/*
#include "adapter.h"
*/
import "C"

// The names of the adapter format ("The adapter file" in algorithm.md), as the C loader knows them: adapter.h is the one
// place where they are written down.

// Keys of an adapter's metadata: strings, unless said otherwise.
const (
	KeyGeneralType    = C.LESSKV_KEY_GENERAL_TYPE    // GeneralTypeAdapter
	KeyArchitecture   = C.LESSKV_KEY_ARCHITECTURE    // the base model's architecture
	KeyAdapterType    = C.LESSKV_KEY_ADAPTER_TYPE    // AdapterTypeLESS
	KeyVersion        = C.LESSKV_KEY_VERSION         // uint32, 1 to AdapterVersion
	KeyRank           = C.LESSKV_KEY_RANK            // uint32, R
	KeyHidden         = C.LESSKV_KEY_HIDDEN          // uint32, R'
	KeyBlockCount     = C.LESSKV_KEY_BLOCK_COUNT     // uint32, layers of the base model
	KeyHeadCount      = C.LESSKV_KEY_HEAD_COUNT      // uint32, Hq; from version 2 on an array where layers differ, as the next three
	KeyHeadCountKV    = C.LESSKV_KEY_HEAD_COUNT_KV   // uint32, Hkv
	KeyKeyLength      = C.LESSKV_KEY_KEY_LENGTH      // uint32, D
	KeyValueLength    = C.LESSKV_KEY_VALUE_LENGTH    // uint32, Dv
	KeyBudgetWeight   = C.LESSKV_KEY_BUDGET_WEIGHT   // []float32, a weight for each KV head of each layer; from version 2 on, may be missing
	KeyTrainedHeavy   = C.LESSKV_KEY_TRAINED_HEAVY   // uint32, h of the training
	KeyTrainedRecent  = C.LESSKV_KEY_TRAINED_RECENT  // uint32, r of the training
	KeyTrainedUbatch  = C.LESSKV_KEY_TRAINED_UBATCH  // uint32, tokens of a micro-batch in training
	KeyTrainedContext = C.LESSKV_KEY_TRAINED_CONTEXT // uint32, longest sequence of the training
	KeyTrainedPolicy  = C.LESSKV_KEY_TRAINED_POLICY  // a name that PolicyNames lists
	KeyBaseName       = C.LESSKV_KEY_BASE_NAME       // the base model's name, for people
	KeyDescription    = C.LESSKV_KEY_DESCRIPTION     // how the adapter was made, for people; may be missing
	KeyFingerprint    = C.LESSKV_KEY_FINGERPRINT     // 64 hex digits, the same for every quantisation of the base model
)

// Values of KeyGeneralType and KeyAdapterType in an adapter, and the newest of KeyVersion that is read.
const (
	GeneralTypeAdapter = C.LESSKV_GENERAL_TYPE
	AdapterTypeLESS    = C.LESSKV_ADAPTER_TYPE
	AdapterVersion     = C.LESSKV_ADAPTER_VERSION
)

// AdapterMaxSize is the largest rank, hidden size and any other size that an adapter may claim.
const AdapterMaxSize = C.LESSKV_ADAPTER_MAX_SIZE

// Formats of the tensor names; the argument is the layer, an int. The dimensions are in GGUF order, the first is the
// fastest.
const (
	TensorPhi0 = C.LESSKV_TENSOR_PHI_0 // D, R', Hq
	TensorPhi1 = C.LESSKV_TENSOR_PHI_1 // R', R, Hq
	TensorPsi0 = C.LESSKV_TENSOR_PSI_0 // D, R', Hkv
	TensorPsi1 = C.LESSKV_TENSOR_PSI_1 // R', R, Hkv
	TensorPsi2 = C.LESSKV_TENSOR_PSI_2 // R, R, Hkv; always F32
)
