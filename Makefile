# Two commands: `make demo` runs the main job, `make test` everything that must hold.
# The rest are the steps of the two, and `make soak`, which is what takes hours.

GO          ?= go
PROMPT      ?= func (s *Server) ListenAndServe() error {
# of make soak: how long each fuzz target runs in all, and how many interleavings
FUZZ          ?= 30m
INTERLEAVINGS ?= 10000
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: demo test runtime lint sanitize clean soak soak-kills soak-million soak-interleavings soak-fuzz

demo: runtime
	$(GO) run ./cmd/lesskv run -n 400 --seed 1 "$(PROMPT)"

test: runtime lint sanitize
	$(GO) test -timeout 40m ./...
	$(GO) test -race ./plugin

# what takes long, each step alone: docs/reliability.md
soak: soak-kills soak-million soak-interleavings soak-fuzz

soak-kills: runtime
	$(GO) run ./integration/kills -n 200

soak-million: runtime
	$(GO) run ./integration/million

soak-interleavings: runtime
	LESSKV_INTERLEAVINGS=$(INTERLEAVINGS) $(GO) test -timeout 3h -count=1 -v -run '^TestInterleavings$$' ./cgo/kernels ./integration

# goes on where it was interrupted
soak-fuzz: runtime
	$(GO) run ./integration/campaign -for $(FUZZ)

# go.work is what this step writes, so it must not need it
runtime:
	GOWORK=off $(GO) run ./patches

lint: runtime
	@files=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go' -not -path './build/*')); \
		test -z "$$files" || { echo "gofmt would change: $$files"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

# the kernels; the runtime's other sources are TestSanitizers'
sanitize:
	GOWORK=off cgo/kernels/check.sh sanitize

clean:
	GOWORK=off $(GO) run ./patches -clean
