# Two commands: `make demo` runs the main job, `make test` everything that must hold.
# The rest are the steps of the two, and `make soak`, which is too long for them.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROMPT      ?= func (s *Server) ListenAndServe() error {

# of make soak: how long each fuzz target runs in all, and how many interleavings
FUZZ          ?= 30m
INTERLEAVINGS ?= 10000

.PHONY: demo test soak soak-interleavings soak-fuzz runtime lint sanitize clean

demo: runtime
	$(GO) run ./cmd/lesskv run -n 400 --seed 1 "$(PROMPT)"

test: runtime lint sanitize
	$(GO) test -timeout 40m ./...
	$(GO) test -race ./plugin

# what takes long: docs/reliability.md
soak: soak-interleavings soak-fuzz

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
