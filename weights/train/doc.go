// Package train makes adapters: it records what a model's attention layers see over some text, replays the sparse policy over
// it, and fits phi and psi of every layer to what the policy loses. It needs the model only as a Runtime, and the C kernels
// for the arithmetic.
//
//	report, err := train.Run(ctx, train.Options{...}, runtime, windows)
//
// # The method
//
// LESS trains a layer's phi and psi so that the layer's output, behind its output projection, is what the full cache gives
// (section 3.3 of arXiv 2402.09398). The authors do it over S x S matrices; here it is the recurrence itself, in time
// linear in S (cgo/kernels/train.h). The sparse part of every query and the moment at which every pair is evicted do not
// depend on phi and psi: they are computed once. Layers are independent of each other.
//
// # The folder
//
// Everything is kept in a work folder beside the output: recordings, replays, and each layer that is finished. A run that
// was interrupted, at any moment and in any way, continues there and repeats at most the layers that it was fitting.
package train
