package lesskv_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	llama "github.com/go-skynet/go-llama.cpp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/testdata"
)

// Apps in small, with the options that published ones send, and that treat an error as those do: an answer that comes with one is lost.
// They ignore the model's end, besides, so that no answer is empty by chance.

// environments switch an app that has no option of ours in its source.
var environments = map[string]map[string]string{
	"off":    {"LESSKV": "off"},
	"sparse": {"LESSKV": "on", "LESSKV_BUDGET": "64", "LESSKV_ADAPTER": "none"},
	"LESS":   {"LESSKV": "on", "LESSKV_BUDGET": "64", "LESSKV_ADAPTER": testdata.H2O102},
}

func apps(t *testing.T, f func(t *testing.T, model string)) {
	for name, env := range environments {
		t.Run(name, func(t *testing.T) {
			for key, value := range env {
				if value == testdata.H2O102 {
					value = file(t, value)
				}
				t.Setenv(key, value)
			}
			f(t, file(t, testdata.Model))
		})
	}
}

// A request as LocalAI's llama backend gets it: what a client leaves out is 0, and most of that is passed on.
type request struct {
	Prompt, Grammar, PromptCachePath, NegativePrompt, MainGPU, TensorSplit string
	Temperature, TopP, TypicalP, TailFreeSamplingZ, PresencePenalty        float32
	FrequencyPenalty, NegativePromptScale, RopeFreqBase                    float32
	Tokens, TopK, Threads, Seed, Batch, Mirostat, NDraft                   int
	PromptCacheAll, PromptCacheRO, MLock, MMap                             bool
	StopPrompts                                                            []string
}

func (r request) options() []llama.PredictOption {
	base := r.RopeFreqBase
	if base == 0 {
		base = 10000
	}
	opts := []llama.PredictOption{
		llama.SetTemperature(r.Temperature), llama.SetTopP(r.TopP), llama.SetTopK(r.TopK), llama.SetTokens(r.Tokens), llama.SetThreads(r.Threads),
		llama.WithGrammar(r.Grammar), llama.SetRopeFreqBase(base), llama.SetRopeFreqScale(1),
		llama.SetNegativePromptScale(r.NegativePromptScale), llama.SetNegativePrompt(r.NegativePrompt), llama.SetStopWords(r.StopPrompts...),
		llama.SetFrequencyPenalty(r.FrequencyPenalty), llama.SetMlock(r.MLock), llama.SetMemoryMap(r.MMap), llama.SetPredictionMainGPU(r.MainGPU),
		llama.SetPredictionTensorSplit(r.TensorSplit), llama.SetTailFreeSamplingZ(r.TailFreeSamplingZ), llama.SetTypicalP(r.TypicalP), llama.SetNDraft(r.NDraft),
		llama.IgnoreEOS,
	}
	for on, option := range map[*bool]llama.PredictOption{&r.PromptCacheAll: llama.EnablePromptCacheAll, &r.PromptCacheRO: llama.EnablePromptCacheRO} {
		if *on {
			opts = append(opts, option)
		}
	}
	if r.PromptCachePath != "" {
		opts = append(opts, llama.SetPathPromptCache(r.PromptCachePath))
	}
	if r.PresencePenalty != 0 {
		opts = append(opts, llama.SetPenalty(r.PresencePenalty)) // as it has it
	}
	if r.Mirostat != 0 {
		opts = append(opts, llama.SetMirostat(r.Mirostat))
	}
	if r.Seed != 0 {
		opts = append(opts, llama.SetSeed(r.Seed))
	}
	if r.Batch != 0 {
		opts = append(opts, llama.SetBatch(r.Batch))
	}
	return opts
}

// A server as LocalAI is: one goroutine generates, another hands the tokens on, and an error goes to the log alone.
func TestAppLikeLocalAI(t *testing.T) {
	apps(t, func(t *testing.T, path string) {
		load := func() *llama.LLama {
			return load(t, path, llama.WithRopeFreqBase(10000), llama.WithRopeFreqScale(1), llama.SetContext(512), llama.EnableF16Memory, llama.EnableEmbeddings,
				llama.SetMMap(true), llama.SetMainGPU(""), llama.SetTensorSplit(""), llama.SetNBatch(512))
		}
		model, draft := load(), load()
		stream := func(r request, predict func(string, ...llama.PredictOption) (string, error)) string {
			tokens := make(chan string)
			go func() {
				defer close(tokens)
				_, err := predict(r.Prompt, append(r.options(), llama.SetTokenCallback(func(token string) bool {
					tokens <- token
					return true
				}))...)
				assert.NoError(t, err)
			}()
			var text strings.Builder
			for token := range tokens {
				text.WriteString(token)
			}
			return strings.TrimPrefix(text.String(), "\n")
		}
		speculative := func(text string, opts ...llama.PredictOption) (string, error) {
			return model.SpeculativeSampling(draft, text, opts...)
		}
		bare := request{Prompt: prompt, Tokens: 16, Threads: 1}
		chat := request{Prompt: prompt, Tokens: 16, Threads: 1, Temperature: .7, TopP: .95, TopK: 40, PresencePenalty: -1.1, Seed: 5, StopPrompts: []string{"never said"}}
		cached := chat
		cached.PromptCachePath, cached.PromptCacheAll = filepath.Join(t.TempDir(), "cache"), true
		guided := chat
		guided.NegativePrompt, guided.NegativePromptScale, guided.RopeFreqBase = "// No.", 1.5, 1e6
		tailFree := chat
		tailFree.TailFreeSamplingZ, tailFree.TypicalP, tailFree.Mirostat = .9, 1, 2
		unset := bare
		unset.Threads, unset.Tokens = 0, 2
		for _, r := range []request{bare, chat, cached, cached, guided, tailFree, unset} {
			text, err := model.Predict(r.Prompt, r.options()...)
			require.NoError(t, err)
			assert.NotEmpty(t, text)
			assert.NotEmpty(t, stream(r, model.Predict))
			r.NDraft = 16
			assert.NotEmpty(t, stream(r, speculative), "with a draft model")
		}
		assert.FileExists(t, cached.PromptCachePath)
		assert.Equal(t, stream(bare, model.Predict), stream(bare, model.Predict), "a temperature of 0")

		grammar := bare
		grammar.Grammar = `root ::= "yes" | "no"`
		assert.Contains(t, []string{"yes", "no"}, stream(grammar, model.Predict))

		vector, err := model.Embeddings(prompt, bare.options()...)
		require.NoError(t, err)
		assert.Len(t, vector, 256)
		_, tokens, err := model.TokenizeString(prompt, bare.options()...)
		require.NoError(t, err)
		var ids []int
		for _, token := range tokens {
			ids = append(ids, int(token))
		}
		vector, err = model.TokenEmbeddings(ids, bare.options()...)
		require.NoError(t, err)
		assert.Len(t, vector, 256)
	})
}

// A bot as shuckbot-go is: one model for all, a prompt cache for all prompts, which outlives the process and its configuration, and a
// client that may stop it.
func TestAppLikeShuckbot(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "cache")
	apps(t, func(t *testing.T, path string) {
		model, err := llama.New(path, llama.EnableF16Memory, llama.SetContext(700))
		require.NoError(t, err)
		defer model.Free()
		answer := func(question string, stopAfter int) (tokens []string) {
			stop := make(chan struct{}, 1)
			_, err := model.Predict("Answer with Go.\n\nUSER:"+question+"\nASSISTANT:", llama.SetTokenCallback(func(token string) bool {
				tokens = append(tokens, token)
				if len(tokens) == stopAfter {
					stop <- struct{}{}
				}
				select {
				case <-stop:
					return false
				default:
					return true
				}
			}), llama.SetTokens(40), llama.SetThreads(1), llama.SetTemperature(1), llama.SetTopK(30), llama.SetTopP(.18), llama.SetFrequencyPenalty(1.15), llama.IgnoreEOS,
				llama.EnablePromptCacheAll, llama.SetPathPromptCache(cache), llama.Debug)
			assert.NoError(t, err)
			return tokens
		}
		for _, question := range []string{"What is a channel?", "What is a channel?", "And a map?"} {
			assert.NotEmpty(t, answer(question, 0))
			assert.Len(t, answer(question, 3), 3)
		}
		assert.FileExists(t, cache)
	})
}

// A server as llama-cpp-gpt-api is: options from a configuration file and a request set fields, and events are what is answered with.
func TestAppLikeGPTAPI(t *testing.T) {
	apps(t, func(t *testing.T, path string) {
		model := load(t, path, func(o *llama.ModelOptions) {
			o.ContextSize, o.NBatch, o.F16Memory, o.MMap, o.FreqRopeBase, o.FreqRopeScale = 1024, 512, true, true, 0, 0
		})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body struct {
				Messages    []struct{ Role, Content string }
				MaxTokens   int
				Temperature float32
				Stream      bool
			}
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			text := "replay the conversation:\n"
			for _, m := range body.Messages {
				text += m.Role + ":\n" + m.Content + "\n"
			}
			text, err := model.Predict(text+"system:\n", func(o *llama.PredictOptions) {
				if body.MaxTokens > 0 {
					o.Tokens = body.MaxTokens
				}
				if body.Temperature > 0 {
					o.Temperature = body.Temperature
				}
				if body.Stream {
					o.TokenCallback = func(token string) bool {
						data, _ := json.Marshal(token)
						_, err := w.Write(append([]byte("data:"), append(data, "\n\n"...)...))
						return err == nil
					}
				}
				o.Threads, o.IgnoreEOS = 1, true
			})
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			} else if !body.Stream {
				json.NewEncoder(w).Encode(text)
			}
		}))
		defer server.Close()
		post := func(body string) string {
			response, err := http.Post(server.URL, "application/json", strings.NewReader(body))
			require.NoError(t, err)
			defer response.Body.Close()
			var text bytes.Buffer
			_, err = text.ReadFrom(response.Body)
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, response.StatusCode, text.String())
			return text.String()
		}
		const messages = `"Messages":[{"Role":"user","Content":"write an http server in go, </s> and explain it"}]`
		assert.Greater(t, len(post(`{`+messages+`,"MaxTokens":12}`)), 4)
		assert.Equal(t, 12, strings.Count(post(`{`+messages+`,"MaxTokens":12,"Temperature":0.5,"Stream":true}`), "data:"))
	})
}

// A model as langchaingo wraps one: a callback of the model's own, embeddings of the same model, and options that are 0 where the caller has
// none: as many tokens as the model writes, with LESS up to its trained context.
func TestAppLikeLangchain(t *testing.T) {
	apps(t, func(t *testing.T, path string) {
		model := load(t, path, llama.EnableF16Memory, llama.SetContext(512), llama.EnableEmbeddings, llama.SetGPULayers(0))
		var heard strings.Builder
		tokens := 0
		model.SetTokenCallback(func(token string) bool {
			heard.WriteString(token)
			tokens++
			return os.Getenv("LESSKV") == "on" || tokens < 1000 // the unmodified cache makes room for ever
		})
		generate := func(text string, maxTokens int, stop ...string) string {
			heard.Reset()
			tokens = 0
			result, err := model.Predict(text, llama.SetTokens(maxTokens), llama.SetStopWords(stop...), func(o *llama.PredictOptions) { o.Threads, o.IgnoreEOS = 1, true })
			require.NoError(t, err)
			assert.True(t, strings.HasPrefix(strings.TrimPrefix(heard.String(), "\n"), result))
			return result
		}
		assert.NotEmpty(t, generate(prompt, 20, "never said"))
		assert.NotEmpty(t, generate(prompt, 0))
		if os.Getenv("LESSKV") == "on" {
			assert.Equal(t, "context", timings(t, model).Stop)
		}
		vector, err := model.Embeddings(prompt)
		require.NoError(t, err)
		assert.Len(t, vector, 256)
		assert.NotEmpty(t, generate(prompt, 20))
	})
}
