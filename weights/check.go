package weights

import (
	"errors"
	"fmt"
)

// Check reports whether an adapter fits a model. A wrong geometry fails with ErrGeometry, one *Error for each number; where that fits,
// another model's fingerprint fails with ErrFingerprint, which a user may overrule. The warnings are for people.
func Check(a *Adapter, m *Model) (warnings []string, err error) {
	var faults []error
	compare := func(item string, found, wanted any) {
		if found != wanted {
			faults = append(faults, &Error{Item: item, Err: ErrGeometry, Found: fmt.Sprintf("%v", found), Wanted: fmt.Sprintf("%v, as the model has it", wanted)})
		}
	}
	compare("architecture", a.Architecture, m.Architecture)
	compare("layers", a.Layers, m.Layers)
	for i := range min(a.Layers, m.Layers) {
		found, want, of := a.Layer(i), m.Layer(i), ""
		if a.PerLayer != nil || m.PerLayer != nil {
			of = fmt.Sprintf(" of layer %d", i)
		}
		compare("query heads"+of, found.Heads, want.Heads)
		compare("key/value heads"+of, found.HeadsKV, want.HeadsKV)
		compare("key length"+of, found.KeyLength, want.KeyLength)
		compare("value length"+of, found.ValueLength, want.ValueLength)
		if of == "" {
			break // all are alike
		}
	}
	if faults == nil {
		faults = checkShared(a, m)
	}
	switch {
	case faults != nil:
		return nil, errors.Join(faults...)
	case a.Fingerprint != m.Fingerprint:
		err = &Error{Item: "fingerprint", Err: ErrFingerprint, Found: fmt.Sprintf("%s of %q", a.Fingerprint, a.BaseName), Wanted: fmt.Sprintf("%s of %q", m.Fingerprint, m.Name), Advice: "use the adapter of this model, train one, or force it"}
	case a.BaseName != m.Name:
		warnings = append(warnings, fmt.Sprintf("the adapter was trained for %q, the model calls itself %q: a fine-tune, perhaps", a.BaseName, m.Name))
	}
	return warnings, err
}

// checkShared compares what a layer has of phi and psi with what it can use: phi is of use where something is folded, psi where
// something of what is folded is read, and both need the rank of the state.
func checkShared(a *Adapter, m *Model) (faults []error) {
	read := make([]bool, m.Layers) // whether the cache of a layer is read through phi
	for i := range a.Kernels {
		read[m.Owner(i)] = read[m.Owner(i)] || a.Kernels[i].HasPhi()
	}
	for i := range a.Kernels {
		k, owner := &a.Kernels[i], m.Owner(i)
		fault := func(found, wanted string) {
			faults = append(faults, &Error{Item: fmt.Sprintf("layer %d", i), Err: ErrGeometry, Found: found, Wanted: wanted})
		}
		switch {
		case owner != i && k.HasPsi():
			fault("psi", fmt.Sprintf("none: the layer shares the keys of layer %d", owner))
		case k.HasPhi() && !a.Kernels[owner].HasPsi():
			fault("phi", fmt.Sprintf("psi of layer %d too", owner))
		case k.HasPhi() && k.Rank != a.Kernels[owner].Rank:
			fault(fmt.Sprintf("phi of rank %d", k.Rank), fmt.Sprintf("rank %d, as psi of layer %d has it", a.Kernels[owner].Rank, owner))
		case k.HasPsi() && !read[i]:
			fault("psi", "phi of a layer that reads what it folds")
		}
	}
	return faults
}

// CheckUse reports whether an adapter serves the way it is to be used. Another policy fails with ErrPolicy; another budget
// or a longer context is a warning. Micro-batches of another size are none: docs/training.md. Zero numbers in use are not compared.
func CheckUse(a *Adapter, use Trained) (warnings []string, err error) {
	if use.Policy != a.Trained.Policy {
		return nil, &Error{Item: "policy", Err: ErrPolicy, Found: fmt.Sprintf("%q", use.Policy), Wanted: fmt.Sprintf("%q, which the adapter was trained for", a.Trained.Policy), Advice: "choose that policy, another adapter, or none"}
	}
	if a.Bytes() == 0 {
		return nil, nil // an allocation alone, which nothing was trained under
	}
	for _, n := range []struct {
		what         string
		use, trained int
	}{{"heavy budget", use.Heavy, a.Trained.Heavy}, {"recent budget", use.Recent, a.Trained.Recent}} {
		if n.use != 0 && n.use != n.trained {
			warnings = append(warnings, fmt.Sprintf("%s of %d tokens, the adapter was trained with %d", n.what, n.use, n.trained))
		}
	}
	if use.Context > a.Trained.Context {
		warnings = append(warnings, fmt.Sprintf("context of %d tokens, the adapter was trained with up to %d", use.Context, a.Trained.Context))
	}
	return warnings, nil
}
