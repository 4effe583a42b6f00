package build

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/patches/internal/fake"
	"github.com/lesskv/lesskv/patches/internal/toolchain"
	"github.com/lesskv/lesskv/patches/internal/tree"
)

// A bench is a builder with a fake toolchain.
type bench struct {
	*testing.T
	b   *Builder
	did func() []string
}

func newBench(t *testing.T) *bench {
	did := fake.Toolchain(t)
	tools, err := toolchain.Find(t.Context())
	require.NoError(t, err)
	store := &Store{Dir: t.TempDir()}
	return &bench{t, &Builder{Tools: tools, Store: store, Jobs: 2, Log: io.Discard}, did}
}

// job writes a tree to the disk and makes units of its .c files.
func (b *bench) job(files map[string]string, flags ...string) Job {
	b.Helper()
	t := tree.Tree{}
	for p, text := range files {
		t[p] = []byte(text)
	}
	job := Job{Dir: b.TempDir(), Files: t}
	require.NoError(b, t.Sync(job.Dir))
	for _, p := range t.Paths() {
		if filepath.Ext(p) == ".c" {
			job.Units = append(job.Units, Unit{Source: p, Flags: flags, Identity: "fake", Weight: len(t[p])})
		}
	}
	return job
}

func (b *bench) compile(jobs ...Job) [][]string {
	b.Helper()
	objects, err := b.b.Compile(b.Context(), jobs)
	require.NoError(b, err)
	return objects
}

var sources = map[string]string{
	"src/a.c":     "#include \"a.h\"\nint a;\n",
	"src/b.c":     "int b;\n",
	"include/a.h": "extern int a;\n",
}

func with(files map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for p, text := range files {
		all[p] = text
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

func TestCompilesWhatChanged(t *testing.T) {
	b := newBench(t)
	first := b.compile(b.job(sources))
	require.Equal(t, []string{"src/a.c", "src/b.c"}, b.did())
	data, err := os.ReadFile(first[0][0])
	require.NoError(t, err)
	require.Equal(t, sources["src/a.c"]+sources["include/a.h"], string(data))

	require.Equal(t, first, b.compile(b.job(sources)), "the same elsewhere")
	require.Empty(t, b.did())

	changed := b.compile(b.job(with(sources, "src/b.c", "long b;\n")))
	require.Equal(t, []string{"src/b.c"}, b.did(), "a source")
	require.Equal(t, first[0][0], changed[0][0])

	b.compile(b.job(with(sources, "include/a.h", "extern long a;\n")))
	require.Equal(t, []string{"src/a.c"}, b.did(), "a header")

	b.compile(b.job(sources))
	require.Empty(t, b.did(), "back")

	b.compile(b.job(sources, "-O1"))
	require.Equal(t, []string{"src/a.c", "src/b.c"}, b.did(), "flags")

	job := b.job(sources)
	job.Units[1].Identity = "another compiler"
	b.compile(job)
	require.Equal(t, []string{"src/b.c"}, b.did(), "the compiler")
}

// What is compiled may be what a command makes of the source. It is on many CPUs itself, so that few of them run at a time, and leaves nothing.
func TestGenerates(t *testing.T) {
	b := newBench(t)
	b.b.Jobs = 4
	dir := t.TempDir()
	alone := filepath.Join(dir, "alone")
	maker := filepath.Join(dir, "maker")
	require.NoError(t, os.WriteFile(maker, []byte("#!/bin/sh\nmkdir "+alone+" || exit 1\nsleep 0.05\necho \"made of $1;\" > \"$2\"\necho > \"$2.d\"\nrmdir "+alone+"\n"), 0o755))
	job := b.job(with(sources, "src/c.c", "int c;\n"))
	for i := range job.Units {
		job.Units[i].Generate = []string{maker, job.Units[i].Source}
	}
	objects := b.compile(job)
	data, err := os.ReadFile(objects[0][1])
	require.NoError(t, err)
	require.Equal(t, "made of src/b.c;\n", string(data))
	left, err := filepath.Glob(filepath.Join(b.b.Store.Dir, "*.cpp*"))
	require.NoError(t, err)
	require.Empty(t, left)
	b.did()
	require.Equal(t, objects, b.compile(job))
	require.Empty(t, b.did())
}

func TestTreesShareObjects(t *testing.T) {
	b := newBench(t)
	objects := b.compile(b.job(sources), b.job(with(sources, "include/a.h", "// patched\n")))
	require.Equal(t, []string{"src/a.c", "src/a.c", "src/b.c"}, b.did())
	require.Equal(t, objects[0][1], objects[1][1])
	require.NotEqual(t, objects[0][0], objects[1][0])
}

func TestHeaderThatIsGone(t *testing.T) {
	b := newBench(t)
	b.compile(b.job(sources))
	b.did()
	files := with(sources)
	delete(files, "include/a.h")
	b.compile(b.job(files))
	require.Equal(t, []string{"src/a.c"}, b.did())
}

func TestBrokenStore(t *testing.T) {
	b := newBench(t)
	b.compile(b.job(sources))
	b.did()
	deps, err := filepath.Glob(filepath.Join(b.b.Store.Dir, "src_a.c-*.deps"))
	require.NoError(t, err)
	require.Len(t, deps, 1)
	require.NoError(t, os.WriteFile(deps[0], []byte("[["), 0o644))
	b.compile(b.job(sources))
	require.Equal(t, []string{"src/a.c"}, b.did())
	b.compile(b.job(sources))
	require.Empty(t, b.did())

	for _, bad := range []string{"", "int", "something else"} {
		object := b.compile(b.job(sources))[0][0]
		want, err := os.ReadFile(object)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(object, []byte(bad), 0o644))
		require.Equal(t, object, b.compile(b.job(sources))[0][0])
		require.Equal(t, []string{"src/a.c"}, b.did(), "a damaged object is compiled anew")
		have, err := os.ReadFile(object)
		require.NoError(t, err)
		require.Equal(t, string(want), string(have))
	}
}

func TestInterrupted(t *testing.T) {
	b := newBench(t)
	slow := with(sources, "src/slow.c", "#sleep\n")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	job := b.job(slow)
	go func() {
		_, err := b.b.Compile(ctx, []Job{job})
		done <- err
	}()
	require.Eventually(t, func() bool {
		o, _ := filepath.Glob(filepath.Join(b.b.Store.Dir, "*.deps"))
		return len(o) == 2
	}, time.Minute, 5*time.Millisecond)
	cancel()
	select {
	case err := <-done:
		require.ErrorIs(t, err, context.Canceled)
	case <-time.After(30 * time.Second): // half of what the slow one takes
		t.Fatal("the compiler's children outlived the interruption")
	}
	b.did()
	b.compile(b.job(with(slow, "src/slow.c", "int slow;\n")))
	require.Equal(t, []string{"src/slow.c"}, b.did(), "what was compiled before the interruption is kept")
	left, err := filepath.Glob(filepath.Join(b.b.Store.Dir, "*.tmp*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestCompilerFails(t *testing.T) {
	b := newBench(t)
	_, err := b.b.Compile(t.Context(), []Job{b.job(with(sources, "src/bad.c", "#error bad\n"))})
	var failed *CommandError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, "src/bad.c", failed.What)
	require.ErrorContains(t, err, "#error bad")
	require.ErrorContains(t, err, "-c src/bad.c")
	require.NotErrorIs(t, err, syscall.ENOSPC)

	_, err = b.b.Compile(t.Context(), []Job{b.job(map[string]string{"src/full.c": "#error as: No space left on device\n"})})
	require.ErrorIs(t, err, syscall.ENOSPC)
}

// A warning is none of a plain run's business, and an error of a strict one, whoever compiled the source first. What gave none is not
// compiled again.
func TestStrict(t *testing.T) {
	b := newBench(t)
	job := b.job(with(sources, "src/b.c", "#warning of b\nint b;\n"))
	b.compile(job)
	b.did()
	strict := func(job Job) error {
		for i := range job.Units {
			job.Units[i].Strict = true
		}
		_, err := b.b.Compile(t.Context(), []Job{job})
		return err
	}
	for range 2 {
		require.ErrorContains(t, strict(job), "#warning of b")
		require.Empty(t, b.did(), "a.c gave none")
	}
	require.NoError(t, strict(b.job(sources)))
	require.Equal(t, []string{"src/b.c"}, b.did())
	require.NoError(t, strict(b.job(sources)))
	b.compile(b.job(sources))
	require.Empty(t, b.did())
}

func TestObjectNamesDiffer(t *testing.T) {
	b := newBench(t)
	objects := b.compile(b.job(map[string]string{
		"ggml/quants.c": "int x;\n", "ggml/arch/quants.c": "int x;\n", "ggml_arch/quants.c": "int x;\n", "ggml/quants.cpp": "",
	}))[0]
	names := map[string]bool{}
	for _, o := range objects {
		names[filepath.Base(o)] = true
	}
	require.Len(t, names, 3)

	archive := filepath.Join(t.TempDir(), "libx.a")
	require.NoError(t, b.b.Archive(t.Context(), archive, objects))
	require.FileExists(t, archive)
	err := b.b.Archive(t.Context(), archive, []string{"/a/quants.o", "/b/quants.o"})
	require.ErrorContains(t, err, "quants.o")
}

func TestPrune(t *testing.T) {
	b := newBench(t)
	old := b.compile(b.job(map[string]string{"old.c": ""}))[0][0]
	past := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(old, past, past))
	used := b.compile(b.job(map[string]string{"used.c": ""}))[0][0]
	require.NoError(t, os.Chtimes(used, past, past))
	b.compile(b.job(map[string]string{"used.c": ""}))
	require.NoError(t, b.b.Store.Prune(time.Now().Add(-time.Minute)))
	require.NoFileExists(t, old)
	require.FileExists(t, used)
}

// Two copies of one library, which define the same functions, are one program's without any of them being joined: inline functions, what is
// static in them, templates, and a class. Each copy is compiled otherwise.
func TestCombineKeepsCopiesApart(t *testing.T) {
	const library = `#include <string>
#include <vector>
inline int & last() { static int n = SIZE; return n; }
template <typename T> struct shape { virtual ~shape() {} virtual T area() { return SIZE; } };
int local(shape<int> * s);
extern "C" int entry() { shape<int> s; return local(&s); }
`
	const other = `#include <string>
#include <vector>
inline int & last() { static int n = SIZE; return n; }
template <typename T> struct shape { virtual ~shape() {} virtual T area() { return SIZE; } };
int local(shape<int> * s) { std::vector<std::string> v(s->area(), std::to_string(last()++)); return v.size() + last(); }
`
	const program = `extern "C" int entry_2(), entry_30();
int main() { return entry_2() == 5 && entry_2() == 6 && entry_30() == 61 ? 0 : 1; }
`
	for _, compiler := range [][2]string{{"gcc", "g++"}, {"clang", "clang++"}} {
		t.Run(compiler[1], func(t *testing.T) {
			for name, command := range map[string]string{"CC": compiler[0], "CXX": compiler[1], "AR": "ar", "OBJCOPY": ""} {
				t.Setenv(name, command)
			}
			tools, err := toolchain.Find(t.Context())
			if err != nil || tools.GOOS != "linux" {
				t.Skipf("not here: %v", err)
			}
			flags, err := tools.FindObjcopy(t.Context(), nil)
			if err != nil {
				t.Skipf("not with these tools: %v", err)
			}
			dir := t.TempDir()
			b := &Builder{Tools: tools, Store: &Store{Dir: t.TempDir()}, Jobs: 2, Log: io.Discard}
			files := tree.Tree{"a.cpp": []byte(library), "b.cpp": []byte(other), "main.cpp": []byte(program)}
			require.NoError(t, files.Sync(dir))
			compile := func(flags []string, names ...string) []string {
				job := Job{Dir: dir, Files: files}
				for _, name := range names {
					job.Units = append(job.Units, Unit{Source: name, Lang: toolchain.CXX, Flags: flags})
				}
				objects, err := b.Compile(t.Context(), []Job{job})
				require.NoError(t, err)
				return objects[0]
			}
			all := compile(nil, "main.cpp")
			for _, n := range []string{"2", "30"} {
				objects := compile(append([]string{"-DSIZE=" + n, "-Dentry=entry_" + n}, flags...), "a.cpp", "b.cpp")
				object, err := b.Combine(t.Context(), "copy"+n, objects, []string{"entry_" + n})
				require.NoError(t, err)
				again, err := b.Combine(t.Context(), "copy"+n, objects, []string{"entry_" + n})
				require.NoError(t, err)
				require.Equal(t, object, again)
				all = append(all, object)
			}
			path := filepath.Join(dir, "program")
			require.NoError(t, b.Link(t.Context(), path, all, nil))
			_, err = b.Run(t.Context(), dir, path, []string{path})
			require.NoError(t, err)
		})
	}
}
