//go:build cgo

// Package assembled does not compile where no runtime is assembled, and says what to do. Without it a build would end in a header of
// llama.cpp that is not there, in another module.
//
// What ties a module to a runtime is a go.work. A checkout has one beside its go.mod, and so has nobody who builds the command as a
// package of another module: patches -install, which does, says so by the macro.
package assembled

/*
#if !defined(LESSKV_ASSEMBLED) && !__has_include("../../../../go.work")
#error "the runtime is not assembled. In a checkout: make runtime. Elsewhere: go run github.com/lesskv/lesskv/patches@VERSION -install"
#endif
*/
import "C"
