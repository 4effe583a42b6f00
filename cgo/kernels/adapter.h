// adapter.h: the names of the adapter format ("The adapter file" in algorithm.md), for the C++ loader and, through
// cgo, for the Go package weights. Nowhere else.

#ifndef LESSKV_ADAPTER_H
#define LESSKV_ADAPTER_H

#define LESSKV_ADAPTER_VERSION 3 // the newest; those before are read too, and the first that will do is written

#define LESSKV_ADAPTER_MAX_SIZE 65536 // of rank, hidden, and every other size that a file may claim

#define LESSKV_KEY_GENERAL_TYPE    "general.type"         // string: LESSKV_GENERAL_TYPE
#define LESSKV_KEY_ARCHITECTURE    "general.architecture" // string: the base model's
#define LESSKV_KEY_ADAPTER_TYPE    "adapter.type"         // string: LESSKV_ADAPTER_TYPE
#define LESSKV_KEY_VERSION         "less.version"         // u32, as all below but the last three strings
#define LESSKV_KEY_RANK            "less.rank"         // version 3: these two may be arrays of u32, one entry a layer
#define LESSKV_KEY_HIDDEN          "less.hidden"
#define LESSKV_KEY_BLOCK_COUNT     "less.block_count"
#define LESSKV_KEY_HEAD_COUNT      "less.head_count"   // version 2: these four may be arrays of u32, one entry a layer
#define LESSKV_KEY_HEAD_COUNT_KV   "less.head_count_kv"
#define LESSKV_KEY_KEY_LENGTH      "less.key_length"
#define LESSKV_KEY_VALUE_LENGTH    "less.value_length"
#define LESSKV_KEY_TRAINED_HEAVY   "less.trained.heavy"
#define LESSKV_KEY_TRAINED_RECENT  "less.trained.recent"
#define LESSKV_KEY_TRAINED_UBATCH  "less.trained.ubatch"
#define LESSKV_KEY_TRAINED_CONTEXT "less.trained.context"
#define LESSKV_KEY_TRAINED_POLICY  "less.trained.policy"   // string
#define LESSKV_KEY_BASE_NAME       "less.base.name"        // string
#define LESSKV_KEY_FINGERPRINT     "less.base.fingerprint" // string

#define LESSKV_KEY_BUDGET_WEIGHT "less.budget.weight" // version 2, optional: f32 array, one entry for each KV head of each layer, layer by layer

#define LESSKV_KEY_SLOT_KEY_TYPE   "less.slots.key_type" // version 3, both or none: arrays of u32, one entry a layer, ggml's numbers of types
#define LESSKV_KEY_SLOT_VALUE_TYPE "less.slots.value_type"

#define LESSKV_KEY_DESCRIPTION "general.description" // string, optional: how the adapter was made, for people

#define LESSKV_GENERAL_TYPE "adapter"
#define LESSKV_ADAPTER_TYPE "less"

// printf formats; dims in GGUF order, first = fastest
#define LESSKV_TENSOR_PHI_0 "blk.%d.less.phi.0.weight" // D, R', Hq
#define LESSKV_TENSOR_PHI_1 "blk.%d.less.phi.1.weight" // R', R, Hq
#define LESSKV_TENSOR_PSI_0 "blk.%d.less.psi.0.weight" // D, R', Hkv
#define LESSKV_TENSOR_PSI_1 "blk.%d.less.psi.1.weight" // R', R, Hkv
#define LESSKV_TENSOR_PSI_2 "blk.%d.less.psi.2.weight" // R, R, Hkv; always F32
#define LESSKV_TENSOR_PHI_SCALE "blk.%d.less.phi.scale" // Hq; always F32; version 2, optional beside phi

#endif
