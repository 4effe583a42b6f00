package main

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// endings are the ends of the names of what flags name, and of what the commands write with -o.
var (
	endings = map[string][]string{"model": {"gguf"}, "adapter": {"gguf"}, "plot": {"png", "svg"}, "data": {"txt", "md", "tokens"}, "prompts": {"jsonl"}, "into": {"md"}}
	outputs = map[string][]string{"plan": {"png", "svg"}, "train": {"gguf"}, "tune": {"gguf"}, "merge": {"gguf"}, "import": {"gguf"}, "bench": {"json"}}
)

// folders tells whether a flag of a command names a folder.
func folders(command, flag string) bool {
	return slices.Contains([]string{"dir", "recordings", "targets", "other-build"}, flag) || command == "verify" && flag == "output"
}

// complete tells a shell what the flags of all commands take: files by their endings, and words.
func complete(root *cobra.Command) error {
	slots := []string{"f16", "f32", "q8_0", "q4_0"}
	words := map[string][]string{"policy": policyNames(), "type": slots, "recall": recallNames()}
	var err error
	for _, c := range root.Commands() {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			of := words[f.Name]
			if w, ok := f.Value.(word); ok {
				of = w.of
			}
			switch {
			case c.Name() == "import" && f.Name == "policy": // of the authors' training
				of = []string{"h2o", "lambda"}
			case f.Name == "method":
				of = methodNames(c.Name())
			}
			ends := endings[f.Name]
			if f.Name == "output" {
				ends = outputs[c.Name()]
			}
			if ends != nil && err == nil {
				err = c.MarkFlagFilename(f.Name, ends...)
			}
			if folders(c.Name(), f.Name) && err == nil {
				err = c.MarkFlagDirname(f.Name)
			}
			if len(of) > 0 && err == nil {
				err = c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(slices.Clone(of), cobra.ShellCompDirectiveNoFileComp))
			}
		})
		if c.Name() == "inspect" || c.Name() == "merge" {
			c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return []string{"gguf"}, cobra.ShellCompDirectiveFilterFileExt
			}
		}
	}
	return err
}
