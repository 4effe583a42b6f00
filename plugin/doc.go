// Package lesskv gives programs that use github.com/go-skynet/go-llama.cpp a KV cache that does not grow.
//
// The cache of a transformer holds a key and a value of every token, in every layer. LESS (Dong et al., "Get More with LESS",
// arXiv 2402.09398) keeps a fixed number of them, chosen by a policy, and folds what it evicts into a small low-rank state
// through kernels that were trained for the model. Memory is constant, whatever the length of the text.
//
// # Use
//
// The runtime is assembled once on each machine that builds the app, in the folder of its go.mod (README.md of the module):
//
//	go run github.com/lesskv/lesskv/patches@VERSION -app .
//
// A build without it ends in a missing common.h, in a file of go-llama.cpp. Then one option does it:
//
//	model, err := llama.New("model.gguf", llama.SetContext(8192), lesskv.Enable(lesskv.Config{}))
//
// Everything else stays as it was. The zero [Config] takes the adapter from model.lesskv.gguf, beside the model, and with it its policy,
// its budgets by head and, where it has phi and psi, the budget that they were trained for. If there is none, what is evicted is lost (the
// cache is "sparse only"), which is said once in the log, loudly; [NoAdapter] asks for that in silence. Without an adapter the cache has a
// twelfth of the bytes of the full f16 cache, 1,024 pairs a head at least, in slots of 8 bits, and the policy [Peak].
//
// # How much stays
//
// A budget counts pairs of key and value, for each layer and KV head: on average, where the adapter has budgets by head (lesskv tune),
// and the same for all without. [Tokens] says it outright, [Share] as a part of the context (64 at least), [MiB] and [Bytes] as the
// memory that one sequence may take, and [Part] as a share of the bytes of the full f16 cache. Bytes are those that [CacheStats]
// counts, the state and the kernels included; the scratch of computing lies beside them. A budget of at least the context is no
// error: nothing is evicted, and the output is, to rounding, that of the unmodified runtime with a cache of the same type.
//
// Of the budget, Heavy pairs are chosen by score and the rest are the most recent. The first Pinned tokens always stay and
// count as heavy: one by default, since models lean on the first token; a chat gives the length of its system prompt.
//
// # Which stay
//
//   - [H2O]: those that got the most attention since they came.
//   - [Lambda]: the oldest, and the most recent. Needs no scores.
//   - [Peak]: those that got the most attention at any one time, of late. The default without an adapter.
//
// [Policies] lists all that the runtime has.
//
// Kernels are trained for one policy; another is refused.
//
// # Switching without a change of source
//
// Where a program gives no option of this package, llama.New reads the environment, so that a program that was only linked
// anew can be switched:
//
//	LESSKV                on, off
//	LESSKV_BUDGET         1024, 5%, 64MiB, or 1/16 of the full f16 cache's bytes
//	LESSKV_POLICY         h2o, lambda, peak, or another name of [Policies]
//	LESSKV_HEAVY          a number of tokens
//	LESSKV_PINNED         a number of tokens
//	LESSKV_TYPE           f16, f32, q8_0, q4_0; or two, for keys and values: q4_0,q8_0
//	LESSKV_ADAPTER        a path, or none
//	LESSKV_FORCE_ADAPTER  on, off
//	LESSKV_DEVICE         on, off: the cache where the layers are ([Config])
//	LESSKV_CHECKPOINTS    a number of copies
//	LESSKV_RPC            host:port, several with commas: servers whose devices take layers ([RPC])
//
// LESSKV_RPC holds with LESS off too; the others are without effect unless LESSKV is on, whatever they say. A name LESSKV_… that is unknown is said once in the
// log. [RegisterFlags] offers the same as command-line flags. An option in the source goes before the environment.
// LESSKV_REFERENCE=on, for all caches of a process, runs the plain loops that judge the fast kernels: slow, to find out whether
// those are at fault.
//
// # What differs
//
// With LESS, the context that llama.New is given limits nothing: generation goes on to the context that the model was trained
// for, and ends there ([LastTimings] and the log say so).
//
// A prompt that extends the text of the last one goes on from the cache. One that only shares a prefix with that text (the same prompt again, a
// last turn that was edited, a history whose answer has other tokens than were generated) resumes from the latest checkpoint within that
// prefix: a copy of the cache, taken at the end of each prompt and of each answer. What comes out is what an evaluation from that point
// gives, to the bit. The newest two are kept (Config.Checkpoints), each as large as the cache of one sequence and one row of logits, and none
// for which there is no memory; [Stats] counts them as CheckpointBytes, no budget does.
// LoadState, a prompt cache, embeddings and a failed decode forget them. Any other prompt is evaluated anew.
//
// Eviction happens after each micro-batch, so what comes out depends on its size: the batch of llama.SetNBatch and
// llama.SetBatch, at most 512. For the same prompts in the same order and sizes it is the same to the bit, with any number of
// threads.
//
// What reads like a control token of the model in a prompt ("</s>") is one, as chat templates need it; go-llama.cpp made it text, and so
// does [PlainText].
//
// A sequence cannot be shifted, nor cut back past a pair that was evicted, nor at all where layers are recurrent. Models that LESS does not cover (ALiBi, multi-head
// latent attention, encoders, recurrent models and a few more) are refused with [ErrUnsupported]. Of models in which only some layers
// attend it serves those, and reports the others' states as RecurrentBytes.
//
// # Calls
//
// Models are independent of each other. One model serves one call at a time: a second, from another goroutine or the token
// callback, fails with [ErrBusy]. Only TokenizeString may be called at any time, and Free, which does not wait: the running
// call ends after its token, and then the memory goes. [Interrupt] ends a call from outside, and so does a context:
//
//	text, err := model.Predict(prompt, lesskv.WithContext(request.Context()))
//
// Both take effect between two tokens, or two batches of a prompt, and while a grammar computes; not while a text is cut into tokens.
// The token callback and the log's writer run on goroutines of the package's, one call at a time.
//
// [Stats] says what the cache holds, [LastTimings] what a call did. Log lines of llama.cpp go to standard error from
// warnings on, or where [SetLogOutput] and [SetLogLevel] say.
//
// # Memory outside the cache
//
// On Linux with glibc, the first llama.New with LESS switched on gives the process a C heap that hands back what models leave: no
// more arenas than there are (M_ARENA_MAX), and blocks from 128 KiB on mapped for themselves (M_MMAP_THRESHOLD). Other C code of
// the process sees that too. It buys a process of constant size: Go calls from many threads, glibc has an arena for each few of them,
// and every one would keep what one call left in it, and the blocks of models that are long freed. Where the environment has
// MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES, nothing is set, nor with LESS off: for the same there, start the
// program with MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=131072. With LESS on or off, calls end with malloc_trim.
//
// # Errors
//
// What llama.New and the calls of a model return can be asked for its kind with [errors.Is], and holds an [*Error]:
//
//	model, err := llama.New(path, lesskv.Enable(cfg))
//	var e *lesskv.Error
//	switch {
//	case errors.Is(err, lesskv.ErrAdapter):
//		// retrain, or run sparse only
//	case errors.As(err, &e):
//		log.Print(e.Reason)
//	}
//
// docs/compatibility.md of the module says of every function and option of go-llama.cpp what it does here.
package lesskv
