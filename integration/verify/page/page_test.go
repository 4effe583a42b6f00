package page

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"html"
	"image"
	"image/png"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lesskv/lesskv/integration/provenance"
	"github.com/lesskv/lesskv/integration/verify"
)

const data = "../../testdata/"

// measured is one small report for all tests.
var measured = sync.OnceValues(func() (*verify.Report, error) {
	text, err := os.ReadFile(data + "heldout.txt")
	if err != nil {
		return nil, err
	}
	adapter := data + "gopher-5m.peak-41.lesskv.gguf"
	r, err := verify.Run(context.Background(), verify.Plan{
		Model: data + "gopher-5m.gguf", Adapters: []string{adapter}, Text: string(text[:12000]), Windows: 2, Contexts: []int{256}, Ubatches: []int{32, 16},
		Budgets: []verify.Budget{verify.Tokens(41), verify.Tokens(90)}, Generate: 4, Recall: []string{verify.Needle}, Samples: 50, Block: 16, Buckets: 4, Peaks: []int{256, 4096},
	})
	if err == nil {
		r.Check(verify.Must("kl <= 0.0001"), verify.Must("less: kl <= 10"))
	}
	return r, err
})

func report(t *testing.T) *verify.Report {
	t.Helper()
	r, err := measured()
	require.NoError(t, err)
	return r
}

func TestWrite(t *testing.T) {
	r := report(t)
	dir := filepath.Join(t.TempDir(), "new", "folder")
	paths, err := Write(r, dir)
	require.NoError(t, err)
	var names []string
	for _, p := range paths {
		names = append(names, filepath.Base(p))
		info, err := os.Stat(p)
		require.NoError(t, err)
		assert.Greater(t, info.Size(), int64(1000), p)
	}
	assert.Equal(t, []string{"report.json", "report.csv", "report.md", "report.html", "quality.png", "position.png", "layers.png", "held-41.png", "held-90.png", "memory.png"}, names)

	var again verify.Report
	text, err := os.ReadFile(paths[0])
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &again))
	rewritten, err := again.JSON()
	require.NoError(t, err)
	assert.Equal(t, string(text), string(rewritten), "nothing is lost in JSON")

	lines, err := os.ReadFile(paths[1])
	require.NoError(t, err)
	all, err := csv.NewReader(bytes.NewReader(lines)).ReadAll()
	require.NoError(t, err)
	require.Len(t, all, 1+len(r.Rows))
	kl, bytes := slices.Index(all[0], "kl"), slices.Index(all[0], "bytes")
	for i, row := range r.Rows {
		assert.Equal(t, strconv.FormatFloat(row.KL.Value, 'g', -1, 64), all[i+1][kl])
		assert.Equal(t, strconv.FormatInt(row.Bytes.Total, 10), all[i+1][bytes])
	}
	for _, p := range paths[4:] {
		data, err := os.ReadFile(p)
		require.NoError(t, err)
		_, err = png.Decode(strings.NewReader(string(data)))
		assert.NoError(t, err, p)
	}
}

func TestOnDevices(t *testing.T) {
	r := *report(t)
	for _, layers := range []int{0, 7} {
		r.GPU = layers
		paths, err := Write(&r, t.TempDir())
		require.NoError(t, err)
		for _, p := range paths[2:4] { // Markdown and HTML
			assert.True(t, Files()[filepath.Base(p)](p), "%s: it can be written again", p)
			text, err := os.ReadFile(p)
			require.NoError(t, err)
			assert.Equal(t, layers > 0, strings.Contains(html.UnescapeString(string(text)), "Every runtime had 7 layers on devices."), p)
		}
	}
}

// What made the report is at the foot of each page; a report of before it was recorded has none.
func TestBuild(t *testing.T) {
	r := *report(t)
	line := r.Build.Line()
	require.NotEmpty(t, line)
	for _, known := range []bool{true, false} {
		if !known {
			r.Build = provenance.Build{}
		}
		text, err := Markdown(&r)
		require.NoError(t, err)
		assert.Equal(t, known, strings.HasSuffix(string(text), "\n\n"+line+"\n"))
		text, err = HTML(&r)
		require.NoError(t, err)
		assert.Equal(t, known, strings.Contains(html.UnescapeString(string(text)), "<p id=\"build\">"+line+"</p>"))
		var b strings.Builder
		require.NoError(t, Table(&b, &r))
		assert.Equal(t, known, strings.Contains(strings.Join(strings.Fields(b.String()), " "), line))
		text, err = r.JSON()
		require.NoError(t, err)
		assert.Equal(t, known, strings.Contains(string(text), "\n \"build\": {"))
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	require.NoError(t, Table(&b, report(t)))
	for _, want := range []string{
		"budget 41 (16.0 %) of 256, micro-batches of 32", "peak Baseline++", "h2o sparse", "needle", "the full cache fails too",
		"holds:  off: the patched runtime without LESS", "FAILED: kl <= 0.0001: peak LESS at budget 41", "note: no adapter for lambda",
		"peak memory, n_ctx",
	} {
		assert.Contains(t, b.String(), want)
	}
	rows, _, ok := strings.Cut(b.String(), "\nrecall")
	require.True(t, ok)
	for line := range strings.Lines(rows) {
		assert.LessOrEqual(t, utf8.RuneCountInString(strings.TrimSpace(line)), columns, line)
	}
}

// browser runs headless Chromium on a file and returns what it printed, its console among it.
func browser(t *testing.T, file string, args ...string) (stdout, stderr string) {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Skip("no Chromium on this machine (Debian: apt-get install chromium): the page is not tried in a browser")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--hide-scrollbars", "--force-device-scale-factor=1", "--window-size=1400,3000", "--enable-logging=stderr", "--v=0", "--user-data-dir=" + t.TempDir()}, args...)
	cmd := exec.CommandContext(ctx, path, append(args, "file://"+file)...)
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	require.NoError(t, cmd.Run(), "%s", &err)
	return out.String(), err.String()
}

// where is put into a copy of the page: it writes down where the marks came to lie.
const where = `<script>for (const c of document.querySelectorAll("g.marks circle")) { const r = c.getBoundingClientRect(); c.dataset.px = r.x + r.width/2; c.dataset.py = r.y + r.height/2; }</script>`

var (
	circle    = regexp.MustCompile(`<circle [^>]*>`)
	attribute = regexp.MustCompile(`([a-z-]+)="([^"]*)"`)
)

// marksIn returns the attributes of a picture's marks in a page.
func marksIn(t *testing.T, dom, picture string) []map[string]string {
	t.Helper()
	_, rest, ok := strings.Cut(dom, `data-picture="`+picture+`"`)
	require.True(t, ok, "no picture %s in the page", picture)
	rest, _, _ = strings.Cut(rest, "</svg>")
	var all []map[string]string
	for _, c := range circle.FindAllString(rest, -1) {
		m := map[string]string{}
		for _, a := range attribute.FindAllStringSubmatch(c, -1) {
			m[strings.TrimPrefix(a[1], "data-")] = html.UnescapeString(a[2])
		}
		all = append(all, m)
	}
	return all
}

// The page renders in a real browser, without an error on its console and without the network, and the picture's numbers are
// the JSON's: every row has its point, the point lies where its number belongs, and there it is drawn.
func TestBrowser(t *testing.T) {
	r := report(t)
	page, err := HTML(r)
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name, extra string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(page), "</body>", extra+"</body>", 1)), 0o644))
		return path
	}
	assert.NotRegexp(t, `(src|href)="(http|//)`, string(page), "nothing is fetched")

	dom, console := browser(t, write("report.html", ""), "--dump-dom")
	assert.NotContains(t, console, "CONSOLE")
	_, broken := browser(t, write("broken.html", `<script>nothing.like.that()</script>`), "--dump-dom")
	assert.Contains(t, broken, "CONSOLE", "or else the line above sees nothing")

	// what is embedded is the report
	_, embedded, ok := strings.Cut(dom, `id="report">`)
	require.True(t, ok)
	embedded, _, _ = strings.Cut(embedded, "</script>")
	want, err := r.JSON()
	require.NoError(t, err)
	assert.JSONEq(t, string(want), embedded)

	// every row is a point, and no point is anything else
	measured, _ := browser(t, write("where.html", where), "--dump-dom")
	marks := marksIn(t, measured, "quality")
	points := map[string]bool{}
	for _, m := range marks {
		row := find(r, m)
		require.NotNil(t, row, "%v", m)
		assert.Equal(t, strconv.FormatFloat(row.Common.KL.Value, 'g', -1, 64), m["kl"])
		assert.Equal(t, strconv.FormatInt(row.Bytes.Total, 10), m["bytes"])
		points[fmt.Sprintln(m["context"], m["ubatch"], m["panel"], m["policy"], m["method"], m["bytes"])] = true
	}
	type place struct{ ubatch, policy string }
	panels, top := map[place]bool{}, 0.0
	for _, row := range r.Measured() {
		for _, policy := range verify.Policies() {
			if _, shown := methodColours[row.Method]; shown && (row.Policy == policy || row.Policy == "") {
				panels[place{strconv.Itoa(row.Ubatch), policy}] = true
				top = math.Max(top, row.Common.KL.High)
				assert.True(t, points[fmt.Sprintln(row.Context, row.Ubatch, policy, row.Policy, row.Method, row.Bytes.Total)], "%s at budget %d in the panel of %s", row.Name(), row.Budget, policy)
			}
		}
	}
	assert.Len(t, marks, len(points))
	assert.Len(t, panels, 2*len(verify.Policies()))

	// heights are the logarithm of KL, and widths that of bytes, in each panel
	for panel := range panels {
		var x, y [][2]float64
		for _, m := range marks {
			if m["ubatch"] == panel.ubatch && m["panel"] == panel.policy {
				x = append(x, [2]float64{math.Log(number64(t, m["bytes"])), number64(t, m["cx"])})
				y = append(y, [2]float64{math.Log(math.Max(number64(t, m["kl"]), top/depth)), number64(t, m["cy"])})
			}
		}
		for _, line := range [][][2]float64{x, y} {
			lo := slices.MinFunc(line, func(a, b [2]float64) int { return int(math.Copysign(1, a[0]-b[0])) })
			hi := slices.MaxFunc(line, func(a, b [2]float64) int { return int(math.Copysign(1, a[0]-b[0])) })
			slope := (hi[1] - lo[1]) / (hi[0] - lo[0])
			assert.NotZero(t, slope)
			for _, p := range line {
				assert.InDelta(t, lo[1]+slope*(p[0]-lo[0]), p[1], 0.01)
			}
		}
	}

	// the pixels of a point have its colour
	shot := filepath.Join(dir, "shot.png")
	browser(t, filepath.Join(dir, "where.html"), "--screenshot="+shot)
	file, err := os.Open(shot)
	require.NoError(t, err)
	defer file.Close()
	img, err := png.Decode(file)
	require.NoError(t, err)
	drawn := 0
	for _, m := range marks {
		if m["method"] == verify.LESS {
			assert.True(t, coloured(img, t, m), "no point of LESS where %v should be", m)
		}
		if coloured(img, t, m) {
			drawn++
		}
	}
	assert.GreaterOrEqual(t, drawn, len(marks)*3/4, "points that others hide may be missing")

	policies := len(verify.Policies())
	for picture, n := range map[string]int{"position": 2 * (policies + 2) * 4, "layers": 2 * policies * 6, "memory": 4} { // q4_0, and one adapter
		assert.Len(t, marksIn(t, dom, picture), n, picture)
	}
	for _, m := range marksIn(t, dom, "position") {
		budget, _ := strconv.Atoi(m["budget"])
		row := r.Row(256, 32, budget, m["policy"], m["method"])
		require.NotNil(t, row)
		i := slices.IndexFunc(row.Buckets, func(b verify.Bucket) bool { return strconv.Itoa(b.From) == m["from"] })
		assert.Equal(t, strconv.FormatFloat(row.Buckets[i].KL.Value, 'g', -1, 64), m["kl"])
	}
}

func number64(t *testing.T, s string) float64 {
	t.Helper()
	x, err := strconv.ParseFloat(s, 64)
	require.NoError(t, err)
	return x
}

// find returns the row that a mark of the quality picture says it is.
func find(r *verify.Report, m map[string]string) *verify.Row {
	n := func(k string) int {
		x, _ := strconv.Atoi(m[k])
		return x
	}
	return r.Row(n("context"), n("ubatch"), n("budget"), m["policy"], m["method"])
}

// coloured reports whether a mark's place has the colour of its method, give or take the edges.
func coloured(img image.Image, t *testing.T, m map[string]string) bool {
	want := methodColours[m["method"]]
	x, y := int(number64(t, m["px"])), int(number64(t, m["py"]))
	for dx := -2; dx <= 2; dx++ {
		for dy := -2; dy <= 2; dy++ {
			r, g, b, _ := img.At(x+dx, y+dy).RGBA()
			near := func(got uint32, want uint8) bool { return math.Abs(float64(got>>8)-float64(want)) < 24 }
			if near(r, want.R) && near(g, want.G) && near(b, want.B) {
				return true
			}
		}
	}
	return false
}
