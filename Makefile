# Two commands: `make demo` runs the main job, `make test` everything that must hold.
# The rest are the steps of the two.

GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROMPT      ?= func (s *Server) ListenAndServe() error {

.PHONY: demo test runtime lint sanitize clean soak soak-kills soak-million

demo: runtime
	$(GO) run ./cmd/lesskv run -n 400 --seed 1 "$(PROMPT)"

test: STRICT := -strict
test: runtime lint sanitize
	$(GO) test -timeout 40m ./...
	$(GO) test -race ./plugin

# what takes long: docs/reliability.md
soak: soak-kills soak-million

soak-kills: runtime
	$(GO) run ./integration/kills -n 200

soak-million: runtime
	$(GO) run ./integration/million

# go.work is what this step writes, so it must not need it
runtime:
	GOWORK=off $(GO) run ./patches $(STRICT)

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
