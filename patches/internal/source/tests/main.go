// Command tests prints the folder that holds upstream's own tests, as they were released: LESSKV_LLAMA, or one in the user's
// cache, which it fills where that is empty.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/lesskv/lesskv/patches/internal/source"
	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/usage"
)

func main() {
	usage.Main("tests", func(ctx context.Context) error {
		dir, err := find(ctx)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	})
}

func find(ctx context.Context) (string, error) {
	o := source.Options{Part: source.Tests, Folder: os.Getenv(layout.SourcesVariable), Log: os.Stderr}
	if o.Folder != "" {
		_, err := source.Folder(o)
		return o.Folder, err
	}
	var err error
	if o.Cache, err = layout.SourcesFolder(); err != nil {
		return "", err
	}
	_, err = source.Fetch(ctx, o)
	return o.Kept(), err
}
