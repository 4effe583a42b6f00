package main

import "github.com/lesskv/lesskv/integration/testdata"

// builtinPolicy is the built-in model's, where none is chosen: better than H2O at no cost, as the figures in the model's card say.
const builtinPolicy = "peak"

// builtinAdapters are the built-in model's adapters, by policy.
var builtinAdapters = map[string]string{builtinPolicy: testdata.Peak102, "h2o": testdata.H2O102}
