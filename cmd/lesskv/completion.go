package main

import (
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// endings are the ends of the names of what flags name.
var endings = map[string][]string{"model": {"gguf"}, "adapter": {"gguf"}, "plot": {"png", "svg"}}

// complete tells a shell what the flags of all commands take: files by their endings, and words.
func complete(root *cobra.Command) error {
	slots := []string{"f16", "f32", "q8_0", "q4_0"}
	words := map[string][]string{"policy": policyNames(), "type": slots}
	var err error
	for _, c := range root.Commands() {
		c.Flags().VisitAll(func(f *pflag.Flag) {
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
			if ends := endings[f.Name]; ends != nil && err == nil {
				err = c.MarkFlagFilename(f.Name, ends...)
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
