// lesskv.h: the LESS key/value cache of one layer, as plain C11 over plain arrays.
//
// LESS (Dong et al., arXiv 2402.09398) keeps, per KV head, a fixed number of key/value pairs (the
// slots) that a sparse policy chooses, and folds every pair that it evicts into a low-rank state
// H [rank x dv], z [rank] through a small learned kernel psi. A query attends to the slots, to its own
// micro-batch and, as if it were one more token, to the state through its learned kernel phi.
//
// One micro-batch of one layer is two calls with a barrier between them and after them:
//
//     lesskv_attend   every thread; reads the cache, writes the output and, into the scratch, what each pair
//                     was worth to the queries
//     lesskv_commit   every thread; scores, evicts, folds
//
// Where other layers share the cache, they attend before that (lesskv_gather below). All split their work over (ith, nth), are right
// for any nth >= 1, and give the same bits for every nth. Calls for different caches, each with a scratch of its own, need no barrier
// between them, and a thread may have another ith in each. Nothing here allocates but lesskv_cache_new, and lesskv_allocate and the
// plain loops (_ref) while they run; nothing aborts or prints, and the list of policies, complete before main, and the choice of instruction sets are the only state that is global.
//
// Symbols: T tokens of the micro-batch, D = dk and Dv = dv the head sizes, Hq = n_head, Hkv = n_head_kv,
// g = Hq/Hkv query heads a KV head, B = budget.

#ifndef LESSKV_H
#define LESSKV_H

#include <stddef.h>
#include <stdint.h>

#include "lesskv_prefix.h" // renames every symbol below where two copies are linked into one program

#ifdef __cplusplus
extern "C" {
#endif

// Element types. The numbers are ggml's, so that a ggml_type can be cast.
enum lesskv_type {
    LESSKV_TYPE_F32  = 0,
    LESSKV_TYPE_F16  = 1,
    LESSKV_TYPE_Q4_0 = 2, // blocks of 32: one f16 scale, 16 bytes, the first 16 elements in their low halves
    LESSKV_TYPE_Q8_0 = 8, // blocks of 32: one f16 scale, 32 int8
};

// Bytes of n elements; 0 if the type is unknown or n does not fill its blocks.
size_t lesskv_row_size(enum lesskv_type type, int64_t n);

// Rounds n floats to a type and back; n as in lesskv_row_size. f16 rounds to nearest even.
void lesskv_from_f32(enum lesskv_type type, void * dst, const float * src, int64_t n);
void lesskv_to_f32  (enum lesskv_type type, float * dst, const void * src, int64_t n);

// Of n floats that ggml rounded to a quantised type: the scale of each block that has one that is not finite becomes NaN, and with it all
// 32, for ggml may lose a NaN. lesskv_from_f32 has done so. Nothing of f32 and f16, in which nothing is lost.
void lesskv_mark_not_finite(enum lesskv_type type, void * dst, const float * src, int64_t n);

// The instruction sets that the inner loops use here: "x86-64", "x86-64-v3", "x86-64-v4", "arm64", or "plain". Of those that were compiled
// in the best that this processor has, or the one that LESSKV_LEVEL in the environment names.
const char * lesskv_level_name(void);

// A stack of matrices, one a head: [n_head][n_out][n_in], n_in fastest, no gaps.
struct lesskv_mat {
    enum lesskv_type type;
    const void *     data;
};

// The trained functions of one layer ("phi and psi" in algorithm.md). Not owned. Without phi (data NULL in both) the layer's own queries
// read the slots alone, and psi folds for those of sharers; a sharer has phi alone.
//     phi(q) = |gelu(gelu(q W1) W2)|       phi[0] [Hq][R'][D]   phi[1] [Hq][R][R']
//     psi(k) = |gelu(gelu(k U1) U2) U3|    psi[0] [Hkv][R'][D]  psi[1] [Hkv][R][R']  psi[2] [Hkv][R][R]
struct lesskv_kernels {
    int32_t rank;   // R
    int32_t hidden; // R'
    struct lesskv_mat phi[2];
    struct lesskv_mat psi[3];
    const float * phi_scale; // [Hq], added to log(phi z), which is bounded by f32; NULL: 0
};

enum lesskv_status {
    LESSKV_OK = 0,
    LESSKV_ERR_NOMEM,   // no memory
    LESSKV_ERR_ARG,     // a parameter that makes no sense
    LESSKV_ERR_FOLDED,  // the pairs in question are folded and can't be taken back
    LESSKV_ERR_FORMAT,  // not a state of such a cache
    LESSKV_ERR_FINITE,  // what was folded, or the state that it made, is not finite
};
const char * lesskv_status_str(enum lesskv_status status);

struct lesskv_policy; // policy.h; one file each, policy_*.c
const struct lesskv_policy * lesskv_policy_find(const char * name); // NULL if there is none
const struct lesskv_policy * lesskv_policy_at  (int i);             // all, by name; NULL past the last
const char * lesskv_policy_name (const struct lesskv_policy * policy);
const char * lesskv_policy_help (const struct lesskv_policy * policy); // what stays, for people
int32_t      lesskv_policy_heavy(const struct lesskv_policy * policy, int32_t budget); // h where none is given

// What one KV head keeps: B = h + r slots.
struct lesskv_budget {
    int32_t slots; // B
    int32_t heavy; // h
};

// Spreads n times budget slots over n KV heads by their weights: each has `least`, none more than `most`, and the sum is exact unless
// every head has `most`. 1 <= least <= budget <= most, weights from 0 to LESSKV_WEIGHT_MAX, or it is LESSKV_ERR_ARG; they count in
// steps of 2^-16. slots [n].
#define LESSKV_WEIGHT_MAX 2147483648.0f // what a product of slots and weights has room for
enum lesskv_status lesskv_allocate(const float * weight, int32_t n, int32_t budget, int32_t least, int32_t most, int32_t * slots);
// m of a budget of B: what no head has less of. And h of a head that has so many slots of it; heavy: of the budget, below 0: the
// policy's share.
int32_t lesskv_head_least(int32_t budget, int32_t pinned);
int32_t lesskv_head_heavy(const struct lesskv_policy * policy, int32_t slots, int32_t budget, int32_t heavy, int32_t pinned);

struct lesskv_layer {
    int32_t n_head, n_head_kv; // Hq, Hkv; Hq a multiple of Hkv
    int32_t dk, dv;            // D, Dv
    enum lesskv_type type_k, type_v;
    const struct lesskv_policy * policy; // ignored if n_swa > 0
    struct lesskv_budget budget; // of every KV head; ignored if n_swa > 0 or where each has its own
    const struct lesskv_budget * budgets; // [Hkv] of each; or NULL
    int32_t pinned;            // first positions of the sequence that are never evicted; <= every h
    int32_t n_swa;             // > 0: a sliding window: exact, n_swa - 1 slots, no policy, no state
    const struct lesskv_kernels * kernels; // NULL: sparse only. Ignored if n_swa > 0
    int32_t rotation;          // 0: none; n > 0: queries and keys come rotated by the Hadamard matrix of n dimensions, block by block ("Quantised
                               // slots are rotated" in algorithm.md); phi and psi get them rotated back. n is a power of two, 16 at least,
                               // and divides D. Of a layer that shares a cache, the cache's counts. A saved cache does not tell it: it is
                               // loaded into a layer of the same
};

// One layer of one sequence: slots, scores, positions, H, z.
struct lesskv_cache;

enum lesskv_status lesskv_cache_new  (struct lesskv_cache ** out, const struct lesskv_layer * layer); // copies *layer, and its budgets
void               lesskv_cache_free (struct lesskv_cache * cache); // NULL is fine
void               lesskv_cache_clear(struct lesskv_cache * cache); // as new
// As it is kept: budget is the largest of the heads'.
const struct lesskv_layer * lesskv_cache_layer(const struct lesskv_cache * cache);
// dst becomes a copy of src; both of equal layers, else LESSKV_ERR_ARG.
enum lesskv_status lesskv_cache_copy (struct lesskv_cache * dst, const struct lesskv_cache * src);
// Forgets positions >= pos. LESSKV_ERR_FOLDED, and nothing changed, if one of them is no longer a slot in every head.
// For a sliding window: also if a slot that the window of position pos needs is gone.
enum lesskv_status lesskv_cache_cut  (struct lesskv_cache * cache, int32_t pos);

// Bytes of slots (with scores and positions) and of H, z that a layer's cache holds, by the formula of algorithm.md.
void lesskv_layer_bytes(const struct lesskv_layer * layer, size_t * slots, size_t * state);

struct lesskv_stats {
    int64_t seen;   // tokens committed
    int64_t kept;   // slots in use, in the KV head that has most
    int64_t folded; // evicted, in the KV head that has evicted most (dropped ones included where there are no kernels)
    int32_t pos_min; // 1 + the highest evicted position over the heads, or the first position held; -1 if empty
    int32_t pos_max; // the last position; -1 if empty
};
void lesskv_cache_stats(const struct lesskv_cache * cache, struct lesskv_stats * stats);

// What one KV head holds, for tests and pictures: up to max slots in storage order. Returns their number.
int32_t lesskv_cache_slots(const struct lesskv_cache * cache, int32_t head_kv, int32_t max, int32_t * pos, float * score);

// One KV head where it lies, for a caller that keeps a sequence elsewhere from one micro-batch to the next (on a device) and brings it here
// for all that is not attention. What is written here must be what a cache could hold: nothing checks it.
struct lesskv_arrays {
    void * k, * v;     // [B][D] of type_k, [B][Dv] of type_v; the first n slots are in use
    int32_t * pos;     // [B]
    float * score;     // [B]
    float * H, * z;    // [R][Dv], [R]
    int32_t n;
    int32_t last;      // position of the newest token, -1 if none
    int64_t folded;    // pairs evicted
    int32_t * evicted; // highest position evicted, -1 if none
};
struct lesskv_arrays lesskv_cache_arrays(struct lesskv_cache * cache, int32_t head_kv);
// Counts a micro-batch that was committed elsewhere: tokens, slots in use, and how many were evicted. Which were is for the caller to write,
// together with the slots, before anything but statistics is asked.
void lesskv_cache_count(struct lesskv_cache * cache, int32_t pos, int32_t n_tokens);

// Serialised cache: native byte order, no pointers. load checks everything before it changes anything
// (LESSKV_ERR_FORMAT) and restores bit for bit, slot order included.
size_t             lesskv_cache_save_size(const struct lesskv_cache * cache);
void               lesskv_cache_save     (const struct lesskv_cache * cache, void * buf);
enum lesskv_status lesskv_cache_load     (struct lesskv_cache * cache, const void * buf, size_t size);

// A micro-batch: T consecutive positions of one sequence, in one layer. Strides are in bytes, heads and tokens may lie
// anywhere; the elements of one vector are adjacent. k and v are already rounded to the slots' types.
struct lesskv_ubatch {
    int32_t n_tokens; // T
    int32_t pos;      // position of the first; the last one's is below INT32_MAX
    const void * q; size_t q_head, q_token; // f32 [T][Hq][D]
    const void * k; size_t k_head, k_token; // type_k [T][Hkv][D]
    const void * v; size_t v_head, v_token; // type_v [T][Hkv][Dv]
    float scale;          // softmax scale s
    float soft_cap;       // 0: none; else l = cap tanh(l / cap)
    const float * sinks;  // [Hq] sink logits that join the denominator, or NULL
    float * out;          // f32 [T][Hq][Dv], no gaps
    const struct lesskv_layer * layer; // NULL, or the sharer whose q, scale and out these are: lesskv_gather
    float * worth;        // NULL, or the area of lesskv_gather
    struct lesskv_profile * profile; // where the time of the calling thread goes; or NULL
};

// What attend and commit are busy with.
enum lesskv_phase {
    LESSKV_PHASE_SLOTS,   // queries times the slots' keys, weights times their values
    LESSKV_PHASE_UBATCH,  // the same of the micro-batch
    LESSKV_PHASE_SOFTMAX, // masks, exponentials, and the parts of a query made one
    LESSKV_PHASE_PHI,     // phi(q), and its product with H, z
    LESSKV_PHASE_SCORE,   // what pairs were worth
    LESSKV_PHASE_POLICY,  // which of them go
    LESSKV_PHASE_FOLD,    // psi(k), H, z
    LESSKV_PHASE_MOVE,    // tokens into slots
    LESSKV_PHASE_COUNT
};
const char * lesskv_phase_name(int phase); // NULL past the last

// Nanoseconds of one thread, added to what was there.
struct lesskv_profile {
    uint64_t ns[LESSKV_PHASE_COUNT];
    uint64_t attend, commit; // the two calls as a whole
    uint64_t last;           // when the last phase ended
    uint64_t gap[5];         // keeps threads off each other's cache lines
};

// Scratch for micro-batches of up to n_tokens in any layer like this one, by up to n_threads threads: never proportional to a
// context. Where the policy has scores, they take 32 MiB at most, or if that is more a float for each query head and pair. Each thread's
// logits take 4 MiB at most, or if that is more 64 bytes for each pair. Threads past n_threads find nothing to do. The same scratch, unchanged between them, goes to attend and to the commit that follows it.
size_t lesskv_scratch_size(const struct lesskv_layer * layer, int32_t n_tokens, int n_threads);

// n_threads: what the scratch was sized for. Steps 1 and 2 of "A micro-batch" in algorithm.md.
void lesskv_attend(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth);
// Steps 2 to 4. Reads k, v and pos of the micro-batch. LESSKV_ERR_FINITE, from one thread or more: psi, a value, H or z is not
// finite ("What is not finite" in algorithm.md). The step is done all the same, and the cache of no use until it is cleared, or
// becomes another one's copy.
enum lesskv_status lesskv_commit(struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth);

// A cache that other layers share ("Layers that share another layer's cache" in algorithm.md). The layer that it is of attends first,
// then each sharer: with layer set, which is the cache's but for n_head, a multiple of Hkv, and kernels, of which phi counts and is of
// the cache's rank; with its own q, scale, soft_cap, sinks and out, and the k, v and pos of the first. Then comes the commit. A scratch
// keeps what pairs were worth from attend to commit, and serves other layers in between. So, where the policy has scores, gather
// follows each attend, every thread, behind a barrier, and takes that into worth; the commit has worth too, and reads no scratch.
// worth: lesskv_worth_size floats, 0 where the policy has no scores (so has a sliding window) and nothing is to be gathered; unchanged
// from the first gather to the commit. n_tokens: of the largest micro-batch.
size_t lesskv_worth_size(const struct lesskv_layer * layer, int32_t n_tokens);
void   lesskv_gather(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, void * scratch, int n_threads, int ith, int nth);

// The same in simple loops and double precision, one thread, scratch of its own: what the fast ones are tested against.
// LESSKV_ERR_NOMEM, and nothing changed; the second also LESSKV_ERR_FINITE, as above.
enum lesskv_status lesskv_attend_ref(const struct lesskv_cache * cache, const struct lesskv_ubatch * ub, double * worth);
enum lesskv_status lesskv_commit_ref(struct lesskv_cache * cache, const struct lesskv_ubatch * ub, const double * worth, double * sums);
// worth: f64 [Hkv][B' + T]; a sharer's attend adds to what is there. What the slots in storage order and then the micro-batch were worth
// to its queries: the sum of their softmax weights over A, or the largest, as the policy asks; not used where it does not. B' =
// lesskv_cache_width. The first may be given NULL.
// sums: f64 [Hkv][R][Dv + 1], a row of H and its element of z, from an empty cache on, which has zeros; H and z of the cache are
// these, rounded. NULL: each micro-batch goes on from what is in the cache.
int32_t lesskv_cache_width(const struct lesskv_cache * cache); // the slots that the KV head with most can hold

// phi of n query vectors of one query head, psi of n keys of one KV head, into out [n][R]; x: f32 [n][D], not rotated.
void lesskv_phi(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, int32_t n, float * out, float * tmp);
void lesskv_psi(const struct lesskv_kernels * kernels, int32_t dk, int32_t head, const float * x, int32_t n, float * out, float * tmp);
// tmp of the two: hidden + 2 rank floats.

// SHA-256 (FIPS 180-4): the fingerprint of a model and of an adapter.
struct lesskv_sha256 {
    uint32_t state[8];
    uint64_t n;
    uint8_t  block[64];
};
void lesskv_sha256_init  (struct lesskv_sha256 * s);
void lesskv_sha256_update(struct lesskv_sha256 * s, const void * data, size_t n);
void lesskv_sha256_final (struct lesskv_sha256 * s, char hex[65]); // lower case, NUL at the end

#ifdef __cplusplus
}
#endif

#endif
