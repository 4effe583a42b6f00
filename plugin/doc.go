// Package lesskv gives programs that use github.com/go-skynet/go-llama.cpp a KV cache that does not grow.
//
// The cache of a transformer holds a key and a value of every token, in every layer. LESS (Dong et al., "Get More with LESS",
// arXiv 2402.09398) keeps a fixed number of them, chosen by a policy. What it evicts it folds into a small low-rank state,
// through two functions that were trained for the model, phi and psi. Memory is constant, whatever the length of the text.
//
// # Use
//
// The runtime is assembled once on each machine that builds the app, in the folder of its go.mod (README.md of the module):
//
//	go run github.com/lesskv/lesskv/patches@VERSION -app .
//
// Without it the build of go-llama.cpp fails with "common.h: No such file or directory". Then one option switches LESS on:
//
//	model, err := llama.New("model.gguf", llama.SetContext(8192), lesskv.Enable(lesskv.Config{}))
//
// Everything else stays as it was. The zero [Config] uses the adapter model.lesskv.gguf beside the model: its policy,
// its budgets by head and, if it has phi and psi, the number of slots written in it. Without phi and psi what is evicted is lost (the
// cache is "sparse only"). If there is no adapter, the log warns once; set [NoAdapter] to run without one and without the warning. The policy is then
// [Peak], and the cache has a twelfth of the bytes of the full f16 cache, or 1,024 slots a head if that is more, in q8_0, about 8.5 bits a number.
//
// # How much stays
//
// A budget is the number of slots of each KV head of each layer. A slot holds the key and the value of one token. If the adapter has budgets
// by head (lesskv tune), the budget is their average. [Tokens] gives the number of slots, [Share] a part of the context (64 at least), [MiB]
// and [Bytes] the memory that one sequence may take, and [Part] a share of the bytes of the full f16 cache. Bytes are those that
// [CacheStats] counts, state, phi and psi included; the scratch memory of computing comes on top. With a budget of at least the context
// nothing is evicted, and the output is, to rounding, that of the unmodified runtime with a cache of the same type.
//
// Heavy slots of the budget hold tokens that are chosen by score; the rest hold the most recent. The first Pinned tokens always stay and
// count as heavy. The default is one, since models attend much to the first token; a chat may set the length of its system prompt.
//
// # Which stay
//
//   - [H2O]: those that got the most attention since they came.
//   - [Lambda]: the oldest, and the most recent. Needs no scores.
//   - [Peak]: those that got the most attention from a single query, recent ones counting more. The default without an adapter.
//   - [TOVA]: those that got the most attention from the last token.
//
// [Policies] lists all that the runtime has.
//
// phi and psi are trained for one policy; another is refused.
//
// # Switching without a change of source
//
// If a program gives no option of this package, llama.New reads the environment. So a program that was only relinked
// can be switched:
//
//	LESSKV                on, off
//	LESSKV_BUDGET         1024 slots a head, 5% of the context, 64MiB, or 1/16 of the full f16 cache's bytes
//	LESSKV_POLICY         h2o, lambda, peak, tova, or another name of [Policies]
//	LESSKV_HEAVY          a number of slots
//	LESSKV_PINNED         a number of tokens
//	LESSKV_TYPE           f16, f32, q8_0, q4_0; or two, for keys and values: q4_0,q8_0
//	LESSKV_ADAPTER        a path, or none
//	LESSKV_FORCE_ADAPTER  on, off
//	LESSKV_DEVICE         on, off: the cache where the layers are ([Config])
//	LESSKV_CHECKPOINTS    a number of copies
//	LESSKV_RPC            host:port, several with commas: servers whose devices take layers ([RPC])
//
// LESSKV_RPC is used with LESS off too; the others have no effect unless LESSKV is on. An unknown name LESSKV_… is logged
// once. [RegisterFlags] offers the same as command-line flags. An option in the source has precedence over the environment.
// LESSKV_REFERENCE=on makes all caches of a process run the reference loops that the kernels are tested against. They are slow: use them
// to find out whether a kernel is at fault. LESSKV_LEVEL=x86-64-v3 makes a portable runtime use no AVX-512, in the kernels and in ggml's CPU
// backend; without it they use the best that the processor has.
//
// # What differs
//
// With LESS a text ends at the model's trained context, or at llama.SetContext if that is larger ([LastTimings] and the log say so); that of a
// model with learned positions always ends at the trained context.
//
// A prompt that extends the text of the last one goes on from the cache. One that only shares a prefix with that text (the same prompt again, a
// last turn that was edited, a history whose answer has other tokens than were generated) resumes from the latest checkpoint within that
// prefix. A checkpoint is a copy of the cache, taken at the end of each prompt and of each answer. The output is, bit for bit, that of an
// evaluation from that point. The newest two checkpoints are kept (Config.Checkpoints), each as large as the cache of one sequence and one
// row of logits; one for which there is no memory is not taken. [Stats] counts them as CheckpointBytes; budgets do not count them.
// LoadState, a prompt cache, embeddings and a failed decode drop them. Any other prompt is evaluated anew.
//
// Eviction happens after each micro-batch, so the output depends on its size: the batch of llama.SetNBatch and
// llama.SetBatch, at most 512. For the same prompts in the same order and sizes the output is the same, bit for bit, with any number of
// threads.
//
// The text of a control token of the model in a prompt ("</s>") becomes that token, as chat templates need it. In go-llama.cpp it stayed
// text, and so it does with [PlainText].
//
// A sequence cannot be shifted, and cannot be cut back past a token that was evicted; with recurrent layers it cannot be cut back at all.
// Models that LESS does not serve (ALiBi, multi-head latent attention, encoders, recurrent models and some more) are refused with
// [ErrUnsupported]. Of models in which only some layers attend, LESS serves these layers; RecurrentBytes reports the others' states.
//
// # Calls
//
// Models are independent of each other. One model serves one call at a time: a second, from another goroutine or the token
// callback, fails with [ErrBusy]. Only TokenizeString may be called at any time, and Free, which does not wait: the running
// call ends after its token, and then the memory is freed. [Interrupt] ends a call from outside, and so does a context:
//
//	text, err := model.Predict(prompt, lesskv.WithContext(request.Context()))
//
// Both take effect between two tokens, between two batches of a prompt, and while a grammar computes, but not while a text is tokenised.
// The token callback and the log's writer run on goroutines of this package, one call at a time.
//
// [Stats] says what the cache holds, [LastTimings] what a call did. Log lines of llama.cpp go to standard error from
// warnings on, or where [SetLogOutput] and [SetLogLevel] say.
//
// # Memory outside the cache
//
// On Linux with glibc, the first llama.New with LESS switched on changes two settings of the process's C heap: glibc makes no further
// arenas (M_ARENA_MAX), and maps each block of 128 KiB or more by itself (M_MMAP_THRESHOLD). Other C code of the process has these settings
// too. They keep the size of the process constant. Go calls C from many threads, for which glibc makes many arenas, and each would keep the
// memory of past calls and freed models. If the environment has MALLOC_ARENA_MAX, MALLOC_MMAP_THRESHOLD_ or GLIBC_TUNABLES, or with LESS
// off, nothing is set. To have the same there, start the program with MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=131072. With LESS on or off,
// calls end with malloc_trim.
//
// # Errors
//
// Errors of llama.New and of a model's calls have a kind, for [errors.Is], and contain an [*Error]:
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
// docs/compatibility.md of the module says what every function and option of go-llama.cpp does here.
package lesskv
