package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/lesskv/lesskv/weights"
	"github.com/lesskv/lesskv/weights/gguf"
	"github.com/lesskv/lesskv/weights/importer"
)

func newImport() *cobra.Command {
	var model, out, rotary string
	var t weights.Trained
	cmd := &cobra.Command{
		Use:   "import -m MODEL -o OUTPUT --heavy N --recent N DIR",
		Short: "Make an adapter of the LESS authors' checkpoints",
		Long: `Make an adapter, in F16, of the checkpoints layer_0.pth, layer_1.pth, … that
the training of github.com/hdong920/LESS writes. They don't say which policy
and budget they were trained for: give what that training was given. They are
read, never executed.`,
		Example: `  lesskv import -m llama.gguf -o less.gguf --heavy 102 --recent 102 checkpoints/`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) != 1 || model == "" || out == "":
				return usageError{errors.New("want a model, a name for the adapter and a folder of checkpoints: -m MODEL -o OUTPUT DIR")}
			case t.Context == 0:
				return usageError{errors.New("--context 0: want 1 token at least")}
			case t.Heavy+t.Recent == 0:
				return usageError{errors.New("want the budget of the training: --heavy N --recent N")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			order := map[string]importer.Rotary{"auto": importer.Auto, "halves": importer.Halves, "interleaved": importer.Interleaved}[rotary]
			m, err := weights.ReadModel(model)
			if err != nil {
				return err
			}
			if err := checkOutputs([]string{model}, output{"--output", out, adapterWith(false, false)}); err != nil {
				return err
			}
			a, err := importer.Import(args[0], importer.Options{Model: m, Trained: t, Rotary: order})
			if err != nil {
				return err
			}
			if err := a.Convert(gguf.F16); err != nil {
				return err
			}
			if err := a.Write(out); err != nil {
				return err
			}
			return summary(cmd, out, a)
		},
	}
	f := cmd.Flags()
	addModel(f, &model, " that they were trained for")
	addOutput(f, &out, "`file` to write")
	f.StringVar(&t.Policy, "policy", "h2o", "sparse policy of the training, as h2o or lambda")
	addNumber(f, &t.Heavy, "heavy", "", 0, 0, most, "heavy tokens of the training")
	addNumber(f, &t.Recent, "recent", "", 0, 0, most, "recent tokens of the training")
	addUbatch(f, &t.Ubatch, 1, "")
	addContext(f, &t.Context, 2048, ": that of the training")
	addWord(f, &rotary, "rotary", "order of q and k in the model's file, auto being interleaved for the architecture llama", "auto", "halves", "interleaved")
	f.SortFlags = false
	return cmd
}
