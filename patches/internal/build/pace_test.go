package build

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// What is left is estimated kind by kind: 100 short shaders, which weigh far more, hide no long files.
func TestPace(t *testing.T) {
	shader, file := Unit{Weight: 1000, Generate: []string{"glslc"}}, Unit{Weight: 10}
	p := pace{}
	p.add(shader, 100)
	p.add(file, 4)
	now, end := p.compiled(shader, time.Second)
	assert.Equal(t, 1*time.Second, time.Duration(now))
	assert.Equal(t, 104*time.Second, time.Duration(end)) // of files, nothing is known but that there are four
	now, end = p.compiled(file, 60*time.Second)
	assert.Equal(t, 61*time.Second, time.Duration(now))
	assert.Equal(t, (100+4*60)*time.Second, time.Duration(end))
	for range 99 {
		now, end = p.compiled(shader, time.Second)
	}
	assert.Equal(t, 160*time.Second, time.Duration(now))
	assert.Equal(t, 340*time.Second, time.Duration(end))
}
