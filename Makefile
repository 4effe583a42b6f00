# Two commands: `make demo` runs the main job, `make test` all tests.
# The rest are the steps of the two, and `make soak`, which is what takes hours.

GO          ?= go
TESTFLAGS   ?=
PROMPT      ?= func (s *Server) ListenAndServe() error {
# of make soak: how long each fuzz target runs in all, and how many interleavings
FUZZ          ?= 30m
INTERLEAVINGS ?= 10000
# each knows the Go of its time, and wants no later one
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@$(if $(findstring go1.24,$(shell $(GO) env GOVERSION)),v0.6.1,$(if $(findstring go1.25,$(shell $(GO) env GOVERSION)),v0.7.0,v0.8.2))
# what has goroutines of its own, or tests that have; but for the package whose judge, in plain Go, would take an hour, and for the kernels, whose
# goroutines are those of one function. The race detector sees no C: of the tests, not those that are long and have no goroutine
RACE         = $(addprefix ./,$(sort $(filter-out integration/ cgo/kernels/,$(dir $(shell grep -rlE --include='*.go' '\bgo func|errgroup\.|WaitGroup|Mutex|\.Parallel\(\)' cgo cmd integration patches plugin weights)))))
NORACE      := ^Test(AdapterWrittenLast|DamagedMetadata|GrammarsEnd|LESSEndsAtTheTrainedContext|ManyPrompts|PromptCacheOfAnotherConfiguration|SamplingFollowsItsReference|SpeculativeSamples.*)$$

# of make test-devices: ggml's backend. rpc runs anywhere; blas where OpenBLAS is; vulkan on Mesa's device in software; cuda, metal, and
# vulkan with LESSKV_TEST_DEVICES=local: on a machine that has one
DEVICES     ?= rpc
comma       := ,
LESSKV_TEST_DEVICES ?= $(or $(filter rpc blas,$(DEVICES)),$(if $(filter vulkan,$(DEVICES)),software,local))

.PHONY: demo test test-devices lesskv runtime lint sanitize race clean soak soak-readme soak-contract soak-upstream soak-install soak-calls soak-sanitize soak-race soak-machines soak-kernels soak-kills soak-million soak-interleavings soak-fuzz soak-sources screens

demo: runtime
	$(GO) run ./cmd/lesskv run -n 400 --seed 1 "$(PROMPT)"

# lint runs go vet; a pattern of packages leaves testdata out
test: STRICT := -strict
test: runtime
	$(MAKE) -j2 lint sanitize race
	$(GO) test $(TESTFLAGS) -vet=off -timeout 40m ./... ./integration/testdata

# layers on devices (docs/devices.md). The checkout's runtime has the backend from then on, until make runtime; nothing is installed
test-devices:
	$(if $(or $(findstring $(comma),$(DEVICES)),$(word 2,$(DEVICES))),$(error DEVICES=$(DEVICES): one backend a run, as in make test-devices DEVICES=blas))
	GOWORK=off $(GO) run ./patches -backend cpu,$(DEVICES)
	LESSKV_TEST_DEVICES=$(LESSKV_TEST_DEVICES) $(if $(filter software,$(LESSKV_TEST_DEVICES)),VK_LOADER_DRIVERS_SELECT='*lvp*' GGML_VK_VISIBLE_DEVICES=0) \
		$(GO) test $(TESTFLAGS) -p 1 -count=1 -timeout $(if $(filter software,$(LESSKV_TEST_DEVICES)),12h,30m) -v \
		$(if $(filter blas,$(DEVICES)),-run '^Test(BLAS|NoDevice)$$' ./integration,-run '^Test(Devices|NoDevice)' ./integration ./integration/verify ./cmd/lesskv ./patches/internal/assemble)

# what takes long (docs/reliability.md), each step alone, and again where it stopped
soak: soak-million soak-interleavings soak-kernels soak-kills soak-readme soak-upstream soak-install soak-calls soak-sanitize soak-contract soak-sources soak-race soak-machines soak-fuzz

soak-million: runtime
	$(GO) run ./integration/million

soak-interleavings: runtime
	LESSKV_INTERLEAVINGS=$(INTERLEAVINGS) $(GO) test -timeout 3h -count=1 -v -run '^TestInterleavings$$' ./cgo/kernels ./integration

soak-kills: runtime
	$(GO) run ./integration/kills -n 200

soak-readme: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 2h -run TestQualityPageIsARun ./cmd/lesskv

# what make test does in part: every cell of the contract's grid and every published row, by the plain Go reference; all of llama.cpp under the
# sanitizers, with all of the plugin's tests; all of llama.cpp's own tests
soak-contract: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 2h -run '^(TestContract|TestReferenceFigures|TestPublished|TestWindows)$$' ./integration ./integration/verify

soak-sanitize: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 2h -run '^TestSanitize' ./integration

soak-upstream: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 1h -run '^TestUpstreamsLlamaTests$$' ./integration

soak-install: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 1h -run '^TestInstall$$' ./integration

soak-calls: runtime
	LESSKV_SOAK=1 $(GO) test $(TESTFLAGS) -count=1 -timeout 1h -run '^TestSoak$$' ./integration

# assembles anew, in folders of its own
soak-sources:
	GOWORK=off $(GO) run ./integration/sources

# with gcc and clang, for each instruction set, and all of them on arm64
soak-kernels:
	GOWORK=off cgo/kernels/check.sh

soak-race: runtime
	$(GO) test -race -timeout 12h ./integration

soak-machines: runtime
	integration/machines.sh

soak-fuzz: runtime
	$(GO) run ./integration/campaign -for $(FUZZ)

# the command, with the runtime in it
lesskv: runtime
	$(GO) build -o lesskv ./cmd/lesskv

# docs/screens, in half a minute; needs tmux
screens: runtime
	integration/screens.sh

# go.work is what this step writes, so it must not need it. STRICT: a warning of this project's own sources is an error, for checks
runtime:
	GOWORK=off $(GO) run ./patches $(STRICT)

lint: runtime
	@files=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go' -not -path './build/*')); \
		test -z "$$files" || { echo "gofmt would change: $$files"; exit 1; }
	$(GO) vet ./... ./integration/testdata
	$(GO) run $(STATICCHECK) ./... ./integration/testdata

# the kernels; the runtime's other sources are TestSanitizers'
sanitize:
	GOWORK=off cgo/kernels/check.sh sanitize

# -short makes shorter what is long and has no goroutine; the longest package is first
race: runtime
	$(GO) test -race -short -vet=off -timeout 40m -skip '$(NORACE)' ./plugin $(RACE)
	$(GO) test -race -vet=off -run '^TestCachesTogether$$' ./cgo/kernels

clean:
	GOWORK=off $(GO) run ./patches -clean
