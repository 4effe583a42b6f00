package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/integration/worker"
	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/describe"
	"github.com/lesskv/lesskv/weights/memory"
)

func newMerge() *cobra.Command {
	var out, types string
	cmd := &cobra.Command{
		Use:   "merge -o OUTPUT ADAPTER...",
		Short: "Join adapters that have different layers of one model",
		Long: `Join adapters of one model that were trained with the same options but for
their layers, as lesskv train --layers makes them on several machines.

With --type the output says in which types its slots are, where none are given;
one adapter is enough for that.`,
		Example: `  lesskv merge -o model.lesskv.gguf part1.gguf part2.gguf
  lesskv merge -o mixed.gguf --type q8_0,0.k=q4_0,5.v=q4_0 model.lesskv.gguf`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || out == "" {
				return usageError{errors.New("want adapters and a name for what they make: -o OUTPUT ADAPTER [ADAPTER]")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var adapters []*weights.Adapter
			for _, path := range args {
				a, err := weights.Read(path)
				if err != nil {
					return err
				}
				if types != "" {
					a.SlotTypes = nil // they may differ in what is replaced
				}
				adapters = append(adapters, a)
			}
			merged, err := weights.Merge(adapters...)
			if err != nil {
				return err
			}
			if types != "" {
				if merged.SlotTypes, err = worker.ModelTypes(types, merged.Layers); err != nil {
					return usageError{err}
				}
			}
			if err := checkOutputs(args, output{"--output", out, adapterWith(merged.Budget != nil, merged.SlotTypes != nil)}); err != nil {
				return err
			}
			if types == "" {
				warnTypes(cmd.ErrOrStderr(), out, merged.SlotTypes)
			}
			if err := merged.Write(out); err != nil {
				return err
			}
			return summary(cmd, out, merged)
		},
	}
	addOutput(cmd.Flags(), &out, "`file` to write")
	addLayerTypes(cmd.Flags(), &types, " (default: the adapters', if they have some)")
	return cmd
}

// summary says what an adapter that was written has.
func summary(cmd *cobra.Command, path string, a *weights.Adapter) error {
	with := 0
	for i := range a.Kernels {
		if !a.Kernels[i].Empty() {
			with++
		}
	}
	sizes := ""
	if with > 0 {
		sizes = describe.Sizes(a) + ", "
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: phi and psi for %d of %d layers, %s%s in memory\n", path, with, a.Layers, sizes, memory.Size(a.Bytes()))
	return err
}
