// Package reference is algorithm.md a second time, in plain Go loops: the LESS cache of one layer, the forward pass of a
// llama-architecture GGUF around it, and the figures that both are judged by. Tests hold the C runtime against it.
//
// It was written from algorithm.md alone and shares no code with the kernels that it judges, so that a mistake would have to
// be made twice. Attention is computed in float64, one query at a time; the model's matrix products, which are not what is
// judged, are float32 dot products of a library. Nothing here starts a goroutine: whoever has several sequences runs several.
//
//	model, err := reference.LoadModel("gopher-5m.gguf")
//	layer := model.Layer()
//	layer.Policy, layer.Budget, layer.Heavy, layer.Pinned = reference.Peak, 102, 25, 1
//	logits, err := model.Logits(tokens, reference.LESS{Layer: layer, Ubatch: 32}.Attention())
//
// Symbols are algorithm.md's: T tokens of a micro-batch, D and Dv the head sizes, Hq query and Hkv key/value heads, B budget,
// h and r its heavy and recent parts, R and R' rank and hidden size of the kernels, s the softmax scale.
package reference
